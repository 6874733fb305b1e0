//! TLS towards the gateway: the system's certificate authorities plus the customer's own, and what to say
//! when a certificate does not please.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::config::ConfigError;

/// Builds the connector with the system's authorities and those in `ca_file`.
///
/// # Errors
///
/// When the file cannot be read or holds no certificate, or when there is no authority at all.
pub fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, ConfigError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        log::warn!("some of the system's certificate authorities cannot be read: {error}");
    }
    // The system's list may hold certificates that rustls does not understand; the others still count.
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca_file {
        let bad =
            |why: String| ConfigError::new(format!("SEMILAYER_CA_FILE: {}: {why}", path.display()));
        let own = rustls_native_certs::load_certs_from_paths(Some(path), None);
        if let Some(error) = own.errors.first() {
            return Err(bad(error.to_string()));
        }
        if own.certs.is_empty() {
            return Err(bad("no PEM certificate in it".into()));
        }
        for certificate in own.certs {
            roots.add(certificate).map_err(|e| bad(e.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(ConfigError::new(
            "no certificate authorities found on this system: install ca-certificates, or set SEMILAYER_CA_FILE",
        ));
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name that the certificate of `host` must carry.
///
/// # Errors
///
/// When the host is neither a DNS name nor an address.
pub fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).map_err(|e| format!("{host}: {e}"))
}

/// What went wrong in a TLS handshake with `host`, and what to do about it.
pub fn explain(host: &str, error: &(dyn StdError + 'static)) -> String {
    match rustls_error(error) {
        Some(rustls::Error::InvalidCertificate(certificate)) => {
            explain_certificate(host, certificate)
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            format!(
                "{host} does not speak TLS on this port; is it the right port, or a ws:// gateway?"
            )
        }
        Some(other) => format!("TLS handshake with {host} failed: {other}"),
        None => format!("TLS handshake with {host} failed: {error}"),
    }
}

fn explain_certificate(host: &str, error: &CertificateError) -> String {
    use CertificateError as E;
    let advice = match error {
        E::UnknownIssuer => {
            "it is signed by an authority that this machine does not know. If a proxy inspects TLS here, or the \
             gateway has a private authority, put that authority's certificate (PEM) in SEMILAYER_CA_FILE"
        }
        E::Expired | E::ExpiredContext { .. } => {
            "it has expired; if it has not, this machine's clock is wrong"
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "it is not valid yet; is this machine's clock right?"
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "it is made for another name; SEMILAYER_GATEWAY_URL must use a name that is in the certificate"
        }
        E::Revoked => "it has been revoked",
        // The only trace of this case that rustls keeps is the name in the text of the inner error.
        E::Other(inner) if inner.to_string().contains("CaUsedAsEndEntity") => {
            "it is a certificate authority's own certificate used as a server's, which a plain `openssl req -x509` \
             makes; make a server certificate (basicConstraints=CA:FALSE) signed by that authority, and put the \
             authority's in SEMILAYER_CA_FILE"
        }
        _ => return format!("the certificate of {host} is not acceptable: {error}"),
    };
    format!("the certificate of {host} is not acceptable: {advice} ({error})")
}

fn rustls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // `io::Error::source` skips the error that it wraps and answers that one's source.
        next = match error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Makes aws-lc-rs the process's crypto; to be called before anything else, also in tests.
pub fn install_crypto() {
    // Fails only when it is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
