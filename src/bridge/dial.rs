//! Where a bridge may connect to, and with which TLS.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::registry::AddressCheck;
use super::secure::{Authorities, Identity, Mode, Secure, certificates, no_certificate};
use super::{BridgeError, config::Config, request::invalid};
use crate::tls::{AnyCertificate, AnyName};

/// Which addresses of a host are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
    Any,
}

impl Family {
    /// Reads `ipFamily`: 4, 6, or 0 for whatever there is.
    pub(super) fn of(config: &Config<'_>) -> Result<Self, BridgeError> {
        match config.whole("ipFamily")? {
            None | Some(4) => Ok(Self::V4),
            Some(6) => Ok(Self::V6),
            Some(0) => Ok(Self::Any),
            Some(_) => Err(invalid(
                "config.ipFamily",
                "the source's `ipFamily` must be 4, 6 or 0",
            )),
        }
    }

    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Any => true,
        }
    }
}

/// Finds the address to connect to and checks that it may be dialled; the caller connects to that very one.
pub(super) async fn resolve(
    host: &str,
    port: u16,
    family: Family,
    may_dial: Option<&AddressCheck>,
) -> Result<IpAddr, BridgeError> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let literal = host.parse::<IpAddr>().ok();
    let address = match literal {
        Some(address) => Some(address),
        None => {
            let found = tokio::net::lookup_host((host, port)).await;
            let found = found.map_err(|error| {
                BridgeError::Unreachable(format!("host `{host}` not found: {error}"))
            })?;
            found
                .map(|address| address.ip())
                .find(|address| family.has(*address))
        }
    };
    let address = address.ok_or_else(|| {
        let version = if family == Family::V6 { "6" } else { "4" };
        BridgeError::Unreachable(format!(
            "host `{host}` has no IPv{version} address; the setting is `ipFamily`"
        ))
    })?;
    match may_dial {
        Some(may_dial) if !may_dial(address) => Err(BridgeError::Unreachable(format!(
            "host `{host}` is at {address}, where this service may not connect to"
        ))),
        _ => Ok(address),
    }
}

/// Gives connecting a time limit of its own.
pub(super) async fn connect_within<T>(
    limit: Duration,
    connect: impl Future<Output = Result<T, BridgeError>>,
) -> Result<T, BridgeError> {
    let timed_out =
        BridgeError::Unreachable(format!("no connection within {} ms", limit.as_millis()));
    tokio::time::timeout(limit, connect)
        .await
        .unwrap_or(Err(timed_out))
}

/// What whoever runs the bridges says of connecting.
#[derive(Clone, Default)]
pub(super) struct Dial {
    /// Which addresses may be dialled; with a check, no files are read.
    pub(super) may_dial: Option<AddressCheck>,
    /// A file with authorities that count beside the machine's.
    pub(super) ca_file: Option<PathBuf>,
}

/// Makes the TLS settings of a connection.
pub(super) fn tls(secure: &Secure, dial: &Dial) -> Result<ClientConfig, BridgeError> {
    let not_available =
        |error: rustls::Error| BridgeError::Unreachable(format!("TLS is not available: {error}"));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(not_available)?;
    // As with libpq, an authority that is named is asked even where the mode would not.
    let own = matches!(secure.authorities, Authorities::Own(_));
    let verifier: Arc<dyn ServerCertVerifier> = match secure.mode {
        Mode::VerifyFull => chain(secure, dial, provider)?,
        Mode::VerifyCa => Arc::new(AnyName::new(chain(secure, dial, provider)?)),
        Mode::Require if own => Arc::new(AnyName::new(chain(secure, dial, provider)?)),
        _ => Arc::new(AnyCertificate::new(provider)),
    };
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some(Identity { certificate, key }) = secure.identity(dial)? else {
        return Ok(builder.with_no_client_auth());
    };
    let certificate =
        certificates(&certificate).ok_or_else(|| no_certificate("clientCertificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| {
        BridgeError::Unreachable(format!("`clientKey` holds no PEM key: {error}"))
    })?;
    builder
        .with_client_auth_cert(certificate, key)
        .map_err(|error| {
            BridgeError::Unreachable(format!(
                "`clientKey` does not go with `clientCertificate`: {error}"
            ))
        })
}

fn chain(
    secure: &Secure,
    dial: &Dial,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, BridgeError> {
    let mut roots = RootCertStore::empty();
    // One root that cannot be read must not make the others useless.
    roots.add_parsable_certificates(secure.roots(dial)?);
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| BridgeError::Unreachable(format!("no authority to ask: {error}")))
}

/// The certificates that this machine trusts.
pub(super) fn native_roots() -> &'static [CertificateDer<'static>] {
    static ROOTS: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| rustls_native_certs::load_native_certs().certs)
}
