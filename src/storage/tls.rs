//! How a connection to PostgreSQL is encrypted, by the `sslmode` of its URL.
//!
//! As with libpq, `prefer` and `require` encrypt and believe any certificate; `verify-ca` and `verify-full`
//! both check it and the host's name against the system's roots and `sslrootcert`.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use url::Url;

use super::error::{Cause, StoreError};
use crate::tls::AnyCertificate;

/// What the URL says about encryption.
pub(super) struct Tls {
    pub(super) mode: SslMode,
    pub(super) connector: MakeRustlsConnect,
}

impl Tls {
    /// Takes what concerns encryption out of the URL and leaves the rest in it.
    pub(super) fn take_from(url: &mut Url) -> Result<Self, StoreError> {
        let mut mode = "prefer".to_owned();
        let mut authority = None;
        let rest: Vec<(String, String)> = url
            .query_pairs()
            .into_owned()
            .filter(|(name, value)| match name.as_str() {
                "sslmode" => {
                    mode.clone_from(value);
                    false
                }
                "sslrootcert" => {
                    authority = Some(value.clone());
                    false
                }
                _ => true,
            })
            .collect();
        url.set_query(None);
        if !rest.is_empty() {
            url.query_pairs_mut().extend_pairs(rest);
        }
        let (mode, verified) = match mode.as_str() {
            "disable" => (SslMode::Disable, false),
            "allow" | "prefer" => (SslMode::Prefer, false),
            "require" => (SslMode::Require, authority.is_some()),
            "verify-ca" | "verify-full" => (SslMode::Require, true),
            other => {
                return Err(StoreError::unavailable(format!(
                    "`sslmode={other}` is not known"
                )));
            }
        };
        let config = if verified {
            verified_config(authority.as_deref())
        } else {
            unverified_config()
        };
        let connector = MakeRustlsConnect::new(config.map_err(StoreError::unavailable)?);
        Ok(Self { mode, connector })
    }
}

fn verified_config(authority: Option<&str>) -> Result<ClientConfig, Cause> {
    let mut roots = RootCertStore::empty();
    match authority {
        Some(path) => {
            for certificate in CertificateDer::pem_file_iter(Path::new(path))? {
                roots.add(certificate?)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("no root certificate was found to check the store's against".into());
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn unverified_config() -> Result<ClientConfig, Cause> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyCertificate::new(provider.clone()));
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}
