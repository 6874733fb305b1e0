//! The words for TLS, on servers with certificates of an authority of their own.

mod mysql;
mod postgres;

use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Makes a certificate that has no extensions, and so is of version 1, for the key of the server.
const VERSION_1: &str = r#"
cd "$1" && openssl req -new -key server.key -subj /CN=old -out old.csr &&
openssl x509 -req -in old.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem 2>/dev/null &&
openssl x509 -in server.pem -noout -text | grep -q 'Version: 1 '
"#;

fn to_version_1(dir: &Path) {
    let mut make = Command::new("bash");
    make.args(["-c", VERSION_1, "old"]).arg(dir);
    assert!(make.status().unwrap().success());
}

/// An authority, a certificate of the server for `localhost`, one of a client, and a stranger's authority.
fn certificates(dir: &Path) {
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let authority = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        (params, key, pem)
    };
    let (params, key, pem) = authority("ours");
    write("ca.pem", pem);
    write("ca.key", key.serialize_pem());
    write("stranger.pem", authority("theirs").2);
    let issuer = Issuer::from_params(&params, &key);
    let signed = |file: &str, common: &str, names: Vec<String>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&format!("{file}.pem"), certificate.pem());
        write(&format!("{file}.key"), key.serialize_pem());
    };
    signed("server", "server", vec!["localhost".to_owned()]);
    signed("client", "certified", Vec::new());
}
