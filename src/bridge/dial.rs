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
use tokio::time::Instant;

use super::registry::AddressCheck;
use super::secure::{Authorities, Identity, Mode, Secure, certificates, no_certificate};
use super::{BridgeError, config::Config, request::invalid};
use crate::tls::{AnyCertificate, Chain};

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

/// Finds the addresses of a host that may be dialled, in the order in which they are tried.
async fn addresses(
    host: &str,
    port: u16,
    family: Family,
    may_dial: Option<&AddressCheck>,
) -> Result<Vec<IpAddr>, BridgeError> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut found: Vec<IpAddr> = match host.parse() {
        Ok(literal) => vec![literal],
        Err(_) => {
            let found = tokio::net::lookup_host((host, port)).await;
            let found = found.map_err(|error| {
                BridgeError::Unreachable(format!("host `{host}` not found: {error}"))
            })?;
            let of_family = found
                .map(|address| address.ip())
                .filter(|address| family.has(*address));
            of_family.collect()
        }
    };
    if found.is_empty() {
        let version = if family == Family::V6 { "6" } else { "4" };
        return Err(BridgeError::Unreachable(format!(
            "host `{host}` has no IPv{version} address; the setting is `ipFamily`"
        )));
    }
    let first = found[0];
    found.retain(|address| may_dial.is_none_or(|may_dial| may_dial(*address)));
    if found.is_empty() {
        return Err(BridgeError::Unreachable(format!(
            "host `{host}` is at {first}, where this service may not connect to"
        )));
    }
    found.dedup();
    Ok(found)
}

/// Why connecting to one address failed.
pub(super) struct Refusal {
    pub(super) error: BridgeError,
    /// Whether the server itself has said no: others would say the same, and some count attempts.
    pub(super) is_final: bool,
}

/// Connects to a host within a time limit: to each of its addresses in turn, until one lets us in. Each has its share
/// of the time that is left, so that one that does not answer keeps us from none.
pub(super) async fn connect<T, F: Future<Output = Result<T, Refusal>>>(
    host: (&str, u16, Family),
    may_dial: Option<&AddressCheck>,
    limit: Duration,
    to: impl FnMut(IpAddr) -> F,
) -> Result<T, BridgeError> {
    let due = Instant::now() + limit;
    let (name, port, family) = host;
    let addresses = within(limit, addresses(name, port, family, may_dial)).await?;
    in_turn(name, &addresses, due, to).await
}

async fn in_turn<T, F: Future<Output = Result<T, Refusal>>>(
    host: &str,
    addresses: &[IpAddr],
    due: Instant,
    mut to: impl FnMut(IpAddr) -> F,
) -> Result<T, BridgeError> {
    let mut failures = Vec::new();
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let share = due.saturating_duration_since(Instant::now()) / left.max(1);
        left = left.saturating_sub(1);
        let refusal = match tokio::time::timeout(share, to(*address)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(refusal)) => refusal,
            Err(_) => Refusal {
                error: too_late(share),
                is_final: false,
            },
        };
        if refusal.is_final || addresses.len() == 1 {
            return Err(refusal.error);
        }
        failures.push(format!("{address}: {}", refusal.error));
    }
    Err(BridgeError::Unreachable(format!(
        "none of the {} addresses of host `{host}` let us in: {}",
        addresses.len(),
        failures.join("; ")
    )))
}

/// Gives connecting a time limit of its own.
pub(super) async fn within<T>(
    limit: Duration,
    connect: impl Future<Output = Result<T, BridgeError>>,
) -> Result<T, BridgeError> {
    tokio::time::timeout(limit, connect)
        .await
        .unwrap_or_else(|_| Err(too_late(limit)))
}

fn too_late(limit: Duration) -> BridgeError {
    BridgeError::Unreachable(format!("no connection within {} ms", limit.as_millis()))
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
        Mode::VerifyFull => Arc::new(chain(secure, dial, provider)?),
        Mode::VerifyCa => Arc::new(chain(secure, dial, provider)?.with_any_name()),
        Mode::Require if own => Arc::new(chain(secure, dial, provider)?.with_any_name()),
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
) -> Result<Chain, BridgeError> {
    let mut roots = RootCertStore::empty();
    let authorities = secure.roots(dial)?;
    // One root that cannot be read must not make the others useless.
    roots.add_parsable_certificates(authorities.iter().cloned());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| BridgeError::Unreachable(format!("no authority to ask: {error}")))?;
    Ok(match secure.authorities {
        // A server may be its own authority, if it is named.
        Authorities::Own(_) => Chain::new(verifier, authorities),
        Authorities::System => Chain::new(verifier, Vec::new()),
    })
}

/// The certificates that this machine trusts.
pub(super) fn native_roots() -> &'static [CertificateDer<'static>] {
    static ROOTS: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| rustls_native_certs::load_native_certs().certs)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Says what a greeting would be read from.
    async fn greeted_by(address: IpAddr, port: u16) -> Result<u8, Refusal> {
        let greeting = async {
            let mut stream = TcpStream::connect((address, port)).await?;
            stream.read_u8().await
        };
        let greeting = greeting.await.map_err(|error| Refusal {
            error: BridgeError::Unreachable(error.to_string()),
            is_final: false,
        })?;
        match greeting {
            b'-' => Err(Refusal {
                error: BridgeError::Unreachable("no such user".into()),
                is_final: true,
            }),
            greeting => Ok(greeting),
        }
    }

    /// A server at this loopback address that greets whoever comes; without a greeting it is silent.
    async fn server(at: &str, port: u16, greeting: &'static [u8]) -> (IpAddr, u16) {
        let listener = TcpListener::bind((at, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut streams = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.try_write(greeting).unwrap();
                streams.push(stream);
            }
        });
        (address.ip(), address.port())
    }

    #[tokio::test]
    async fn each_address_is_tried_and_none_takes_the_time_of_all() {
        let (good, port) = server("127.0.0.4", 0, b"+").await;
        let (silent, _) = server("127.0.0.3", port, b"").await;
        let closed = IpAddr::from([127, 0, 0, 2]);
        let reach = async |addresses: &[IpAddr]| {
            let due = Instant::now() + Duration::from_millis(1500);
            in_turn("db", addresses, due, |address| greeted_by(address, port)).await
        };
        assert_eq!(reach(&[closed, silent, good]).await, Ok(b'+'));
        let error = reach(&[closed, silent]).await.unwrap_err().to_string();
        let named = "none of the 2 addresses of host `db` let us in: 127.0.0.2: Connection refused";
        assert!(error.starts_with(named), "{error}");
        assert!(error.contains("127.0.0.3: no connection within"), "{error}");
        // A server that knows us and says no is not followed by another.
        let (strict, _) = server("127.0.0.5", port, b"-").await;
        let error = reach(&[closed, strict, good]).await.unwrap_err();
        assert_eq!(error, BridgeError::Unreachable("no such user".into()));
    }

    #[tokio::test]
    async fn only_what_may_be_dialled_is_tried() {
        let check: AddressCheck = std::sync::Arc::new(|address: IpAddr| address.is_ipv6());
        let refused = addresses("127.0.0.1", 1, Family::Any, Some(&check)).await;
        let error = refused.unwrap_err().to_string();
        assert_eq!(
            error,
            "host `127.0.0.1` is at 127.0.0.1, where this service may not connect to"
        );
        let allowed = addresses("[::1]", 1, Family::Any, Some(&check)).await;
        assert_eq!(allowed.unwrap().len(), 1);
    }
}
