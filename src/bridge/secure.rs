//! The words for TLS towards a database, as libpq and the clients of MySQL mean them, and where the
//! certificates are that go with them.

use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::BridgeError;
use super::config::Config;
use super::dial::{self, Dial};
use super::request::invalid;

/// When there is TLS, and what is checked of the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// No TLS.
    Disable,
    /// TLS only if the server does not do without.
    Allow,
    /// TLS if the server has it; nothing is checked.
    Prefer,
    /// TLS; nothing is checked.
    Require,
    /// An authority vouches for the certificate, for whatever name.
    VerifyCa,
    /// An authority vouches for the certificate, and it is for the host.
    VerifyFull,
}

impl Mode {
    /// Reads a word of PostgreSQL or of MySQL.
    pub(super) fn parse(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().replace('_', "-").as_str() {
            "disable" | "disabled" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" | "preferred" => Self::Prefer,
            "require" | "required" | "no-verify" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" | "verify-identity" => Self::VerifyFull,
            _ => return None,
        })
    }
}

/// Where a certificate or a key is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Pem {
    /// Here.
    Text(String),
    /// In a file where the query runs.
    File(PathBuf),
}

/// Which authorities count.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Authorities {
    /// The machine's, and those of `SEMILAYER_CA_FILE`.
    System,
    /// These alone.
    Own(Pem),
}

/// The TLS of a source.
#[derive(Clone)]
pub(super) struct Secure {
    pub(super) mode: Mode,
    pub(super) authorities: Authorities,
    pub(super) identity: Option<(Pem, Pem)>,
}

/// A certificate and its key, as they are written.
pub(super) struct Identity {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

/// What a URL says of TLS.
#[derive(Default)]
pub(super) struct UrlTls {
    pub(super) mode: Option<Mode>,
    pub(super) authority: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
}

impl Secure {
    /// Reads what a URL and the fields say; `mode_words` are the modes that the database has.
    pub(super) fn of(
        config: &Config<'_>,
        url: UrlTls,
        mode_words: &str,
    ) -> Result<Self, BridgeError> {
        let word = config.text(&["sslMode"])?;
        let flag = config.flag("ssl")?;
        if word.is_some() && flag.is_some() {
            let message = "`ssl` and `sslMode` say the same: leave one of them out";
            return Err(invalid("config.ssl", message));
        }
        let field = match word.map(|word| Mode::parse(&word)) {
            Some(Some(mode)) => Some(mode),
            Some(None) => {
                let message = format!("`sslMode` must be {mode_words}");
                return Err(invalid("config.sslMode", message));
            }
            None => flag.map(|on| if on { Mode::VerifyFull } else { Mode::Disable }),
        };
        let authority = url.authority.or(config.text(&["caCertificate"])?);
        let system = authority.as_deref() == Some("system");
        let authority = authority
            .filter(|_| !system)
            .map(|text| pem("caCertificate", text))
            .transpose()?;
        let named = authority.is_some() || system;
        let said = url.mode.or(field);
        let certificate = url.certificate.or(config.text(&["clientCertificate"])?);
        let key = url.key.or(config.text(&["clientKey"])?);
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((
                pem("clientCertificate", certificate)?,
                pem("clientKey", key)?,
            )),
            (Some(_), None) => {
                let message = "`clientCertificate` needs its `clientKey`";
                return Err(invalid("config.clientKey", message));
            }
            (None, Some(_)) => {
                let message = "`clientKey` needs its `clientCertificate`";
                return Err(invalid("config.clientCertificate", message));
            }
        };
        let mode = said.unwrap_or(default(named, identity.is_some()));
        if system && mode != Mode::VerifyFull {
            let message = "with the system's authorities (`system`) the mode must be verify-full";
            return Err(invalid("config.caCertificate", message));
        }
        let unused = match (named, identity.is_some()) {
            (true, _) => Some("caCertificate"),
            (false, true) => Some("clientCertificate"),
            (false, false) => None,
        };
        if let (Mode::Disable, Some(unused)) = (mode, unused) {
            let message = format!(
                "TLS is off, so `{unused}` would not be used: leave it out, or change the mode"
            );
            return Err(invalid(format!("config.{unused}"), message));
        }
        let authorities = authority.map_or(Authorities::System, Authorities::Own);
        Ok(Self {
            mode,
            authorities,
            identity,
        })
    }

    /// The certificates of the authorities that count.
    pub(super) fn roots(&self, dial: &Dial) -> Result<Vec<CertificateDer<'static>>, BridgeError> {
        match &self.authorities {
            Authorities::Own(pem) => certificates(&pem.read("caCertificate", dial)?)
                .ok_or_else(|| no_certificate("caCertificate")),
            Authorities::System => {
                let mut roots = dial::native_roots().to_vec();
                if let Some(path) = &dial.ca_file {
                    let text = std::fs::read(path).map_err(|error| {
                        let path = path.display();
                        BridgeError::Unreachable(format!("SEMILAYER_CA_FILE: {path}: {error}"))
                    })?;
                    roots.extend(certificates(&text).unwrap_or_default());
                }
                Ok(roots)
            }
        }
    }

    /// The certificate and the key that the server is shown, as they are written.
    pub(super) fn identity(&self, dial: &Dial) -> Result<Option<Identity>, BridgeError> {
        let Some((certificate, key)) = &self.identity else {
            return Ok(None);
        };
        let certificate = certificate.read("clientCertificate", dial)?;
        let key = key.read("clientKey", dial)?;
        Ok(Some(Identity { certificate, key }))
    }
}

impl Pem {
    fn read(&self, field: &str, dial: &Dial) -> Result<Vec<u8>, BridgeError> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::File(_) if dial.may_dial.is_some() => Err(invalid(
                format!("config.{field}"),
                format!("this service reads no files: give `{field}` as PEM text"),
            )),
            Self::File(path) => std::fs::read(path).map_err(|error| {
                let path = path.display();
                BridgeError::Unreachable(format!("`{field}`: cannot read {path}: {error}"))
            }),
        }
    }
}

/// The mode where none is given: whoever names an authority wants it asked, and a certificate is only shown with TLS.
fn default(names_authority: bool, shows_certificate: bool) -> Mode {
    match (names_authority, shows_certificate) {
        (true, _) => Mode::VerifyFull,
        (false, true) => Mode::Require,
        (false, false) => Mode::Disable,
    }
}

/// PEM text, which must be some, or the path of a file.
fn pem(field: &str, text: String) -> Result<Pem, BridgeError> {
    if text.starts_with('/') {
        return Ok(Pem::File(text.into()));
    }
    if field == "clientKey" && text.contains("ENCRYPTED") {
        let message =
            "`clientKey` is encrypted, which is not supported: give it without a passphrase";
        return Err(invalid("config.clientKey", message));
    }
    let fits = match field {
        "clientKey" => PrivateKeyDer::from_pem_slice(text.as_bytes()).is_ok(),
        "caCertificate" => certificates(text.as_bytes())
            .is_some_and(|found| RootCertStore::empty().add_parsable_certificates(found).0 > 0),
        _ => certificates(text.as_bytes()).is_some(),
    };
    if fits {
        return Ok(Pem::Text(text));
    }
    Err(invalid(
        format!("config.{field}"),
        format!("`{field}` must be PEM text, or the absolute path of a file where the query runs"),
    ))
}

/// The certificates in a PEM text, if there are any and all can be read.
pub(super) fn certificates(text: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    found.ok().filter(|found| !found.is_empty())
}

pub(super) fn no_certificate(field: &str) -> BridgeError {
    BridgeError::Unreachable(format!("`{field}` holds no PEM certificate"))
}

/// Refuses what a URL says already and a field says again, and what two fields say.
pub(super) fn said_once(
    config: &Config<'_>,
    fields: &[(&[&str], bool)],
) -> Result<(), BridgeError> {
    for (names, in_url) in fields {
        let mut given = names.iter().filter(|name| config.has(name));
        let field = given.next();
        if let (Some(field), Some(again)) = (field, given.next()) {
            return Err(invalid(
                format!("config.{again}"),
                format!("`{field}` and `{again}` are the same setting: leave one of them out"),
            ));
        }
        if let (true, Some(field)) = (in_url, field) {
            return Err(invalid(
                format!("config.{field}"),
                format!("`{field}` is given in `url` already; change it there or leave `url` out"),
            ));
        }
    }
    Ok(())
}

/// Refuses a list of hosts, which no one connection can be checked against.
pub(super) fn one_host(host: Option<&str>) -> Result<(), BridgeError> {
    match host.is_some_and(|host| host.contains(',')) {
        true => Err(invalid(
            "config.host",
            "several hosts are not supported: name one, or make a source of each",
        )),
        false => Ok(()),
    }
}

/// What a URL has that this bridge does not.
pub(super) fn unsupported(parameter: &str, known: &str) -> BridgeError {
    invalid(
        "config.url",
        format!("`{parameter}` in the source's `url` is not supported; there are {known}"),
    )
}
