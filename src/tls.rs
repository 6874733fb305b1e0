//! Encryption without authentication, as `sslmode=require` means it: for the databases that runners query
//! and for the gateway's own. Whoever wants the peer checked does not come here.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme};

/// Believes every certificate, but not that a peer holds one without proof.
#[derive(Debug)]
pub struct AnyCertificate(Arc<CryptoProvider>);

impl AnyCertificate {
    /// Checks signatures with what the provider has.
    pub fn new(provider: Arc<CryptoProvider>) -> Self {
        Self(provider)
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let (algorithm, key) = public_key(certificate)
            .and_then(algorithm_and_key)
            .ok_or(CertificateError::BadEncoding)?;
        let known = self.0.signature_verification_algorithms.mapping;
        let (_, candidates) = known
            .iter()
            .find(|(scheme, _)| *scheme == signature.scheme)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let valid = candidates.iter().any(|candidate| {
            candidate.public_key_alg_id().as_ref() == algorithm
                && candidate
                    .verify_signature(key, message, signature.signature())
                    .is_ok()
        });
        if valid {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = public_key(certificate).ok_or(CertificateError::BadEncoding)?;
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(key),
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Believes what an authority vouches for, and a server that is an authority itself.
#[derive(Debug)]
pub struct Chain {
    verifier: Arc<WebPkiServerVerifier>,
    authorities: Vec<CertificateDer<'static>>,
    any_name: bool,
}

impl Chain {
    /// Asks `verifier`; `authorities` are those that may be a server's own certificate.
    pub fn new(
        verifier: Arc<WebPkiServerVerifier>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self {
            verifier,
            authorities,
            any_name: false,
        }
    }

    /// The same for whoever is vouched for.
    #[must_use]
    pub fn with_any_name(self) -> Self {
        Self {
            any_name: true,
            ..self
        }
    }

    /// Checks a certificate that is an authority itself, which the library takes for no server's.
    fn verify_own(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (from, to) = validity(certificate).ok_or(CertificateError::BadEncoding)?;
        if now.as_secs() < from {
            return Err(CertificateError::NotValidYet.into());
        }
        if now.as_secs() > to {
            return Err(CertificateError::Expired.into());
        }
        if !self.any_name {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Chain {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if is_version_1(end_entity) {
            return Err(Error::General(
                "the server's certificate is of X.509 version 1, which cannot be checked: give the server one of \
                 version 3, or use a mode that checks nothing"
                    .into(),
            ));
        }
        if self.authorities.iter().any(|own| own == end_entity) {
            return self.verify_own(end_entity, server_name, now);
        }
        let verified = self.verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // The name is looked at last, when everything else was found good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_name => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

const SEQUENCE: u8 = 0x30;

/// The public key of a certificate of any version; the library reads version 3 alone.
fn public_key<'a>(certificate: &'a CertificateDer<'_>) -> Option<&'a [u8]> {
    let (_, rest) = before_validity(certificate)?;
    // Validity and subject.
    let rest = element(element(rest, SEQUENCE)?.2, SEQUENCE)?.2;
    element(rest, SEQUENCE).map(|(_, whole, _)| whole)
}

/// Whether a certificate is of version 1, which has no extensions; whether it can be read at all others say.
fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    before_validity(certificate).is_some_and(|(has_version, _)| !has_version)
}

/// From when to when a certificate is valid, in seconds since 1970.
fn validity(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, rest) = before_validity(certificate)?;
    let (times, _, _) = element(rest, SEQUENCE)?;
    let (from, rest) = time(times)?;
    time(rest).map(|(to, _)| (from, to))
}

/// Whether a certificate says its version, which one of version 1 does not, and what is behind its issuer.
fn before_validity<'a>(certificate: &'a CertificateDer<'_>) -> Option<(bool, &'a [u8])> {
    let (certificate, _, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _, _) = element(certificate, SEQUENCE)?;
    let version = element(rest, 0xa0);
    if let Some((_, _, after)) = version {
        rest = after;
    }
    // Serial number, signature algorithm, issuer.
    for tag in [0x02, SEQUENCE, SEQUENCE] {
        rest = element(rest, tag)?.2;
    }
    Some((version.is_some(), rest))
}

/// One of the two notations of times, and what comes after.
fn time(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (text, rest) = match (element(bytes, 0x17), element(bytes, 0x18)) {
        (Some((text, _, rest)), _) => {
            // Years of two digits are from 1950 on.
            let century = if text.first()? >= &b'5' { "19" } else { "20" };
            (
                format!("{century}{}", std::str::from_utf8(text).ok()?),
                rest,
            )
        }
        (None, Some((text, _, rest))) => (std::str::from_utf8(text).ok()?.to_owned(), rest),
        (None, None) => return None,
    };
    let moment = chrono::NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?;
    // Before 1970 it is as good as then.
    Some((
        u64::try_from(moment.and_utc().timestamp()).unwrap_or(0),
        rest,
    ))
}

/// The two parts of a public key: which algorithm it is for, and its bits.
fn algorithm_and_key(public_key: &[u8]) -> Option<(&[u8], &[u8])> {
    let (contents, _, _) = element(public_key, SEQUENCE)?;
    let (algorithm, _, rest) = element(contents, SEQUENCE)?;
    let (bits, _, _) = element(rest, 0x03)?;
    // The first byte says how many bits of the last are unused: none.
    bits.split_first()
        .filter(|(unused, _)| **unused == 0)
        .map(|(_, key)| (algorithm, key))
}

/// One element of DER with that tag: its contents, the whole of it, and what comes after.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0_usize, |length, digit| (length << 8) | usize::from(*digit));
            (length, rest)
        }
        _ => return None,
    };
    let (contents, after) = rest.split_at_checked(length)?;
    let whole = &bytes[..bytes.len() - after.len()];
    (found == tag).then_some((contents, whole, after))
}
