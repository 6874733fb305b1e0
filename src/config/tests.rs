//! What the settings of a gateway mean, and what is said when one is wrong.

use std::time::Duration;

use clap::Parser;
use tempfile::TempDir;

use super::*;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[derive(Debug, clap::Parser)]
struct Flags {
    #[command(flatten)]
    gateway: GatewayArgs,
}

fn resolve(flags: &[&str]) -> (TempDir, Result<GatewayConfig, ConfigError>) {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let data_dir = data_dir.to_str().unwrap();
    let args = Flags::parse_from([&["semilayer", "--data-dir", data_dir], flags].concat());
    (directory, args.gateway.resolve_with(None))
}

fn error(flags: &[&str]) -> String {
    resolve(flags).1.unwrap_err().to_string()
}

#[test]
fn with_nothing_said_everything_is_embedded_and_on_loopback() {
    let (directory, config) = resolve(&[]);
    let config = config.unwrap();
    let data_dir = directory.path().join("data");
    assert_eq!(
        format!("{:?}", config.database),
        format!("sqlite://{}/semilayer.db", data_dir.display())
    );
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert!(config.internal.is_none());
    assert_eq!(config.timing, Timing::default());
    assert!(!config.tag_sql);
    assert!(config.compress);
}

#[cfg(unix)]
#[test]
fn the_embedded_master_key_is_made_once_and_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nested/master.key");
    let first = MasterKey::load_or_create(&path).unwrap();
    let second = MasterKey::load_or_create(&path).unwrap();
    assert_eq!(first.expose(), second.expose());
    assert_ne!(first.expose(), &[0; 32]);
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "no half-written file is left"
    );
}

#[test]
fn a_damaged_master_key_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("master.key");
    std::fs::write(&path, "oops").unwrap();
    let error = MasterKey::load_or_create(&path).unwrap_err().to_string();
    assert!(
        error.contains("master.key") && error.contains("backup"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "oops");
}

#[test]
fn the_hosted_store_needs_a_master_key() {
    let error = error(&["--database-url", "postgres://u:hunter2@db/semilayer"]);
    assert!(
        error.starts_with("SEMILAYER_MASTER_KEY (--master-key) is required"),
        "{error}"
    );
    let (directory, config) = resolve(&[
        "--database-url",
        "postgres://u:hunter2@db/semilayer",
        "--master-key",
        KEY,
    ]);
    assert!(matches!(config.unwrap().database, Database::Hosted(_)));
    assert!(
        !directory.path().join("data").exists(),
        "a hosted gateway writes nothing to disk"
    );
}

#[test]
fn the_generic_variable_is_only_a_fallback() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().to_str().unwrap();
    let generic = || Some(SecretString::from("sqlite:///tmp/generic.db"));
    let resolved = |flags: &[&str]| {
        let args = Flags::parse_from([&["semilayer", "--data-dir", data_dir], flags].concat());
        format!(
            "{:?}",
            args.gateway.resolve_with(generic()).unwrap().database
        )
    };
    assert_eq!(resolved(&[]), "sqlite:///tmp/generic.db");
    assert_eq!(
        resolved(&["--database-url", "sqlite://own.db"]),
        "sqlite://own.db"
    );
}

#[test]
fn dev_has_an_internal_listener_and_no_other_store_than_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().to_str().unwrap();
    let dev = |flags: &[&str]| {
        let args = Flags::parse_from([&["semilayer", "--data-dir", data_dir], flags].concat());
        args.gateway.resolve_dev(SecretString::from("generated"))
    };
    let internal = dev(&[]).unwrap().internal.unwrap();
    assert!(internal.listen.ip().is_loopback());
    let error = dev(&["--database-url", "postgres://db/x", "--master-key", KEY])
        .unwrap_err()
        .to_string();
    assert!(error.contains("SEMILAYER_DATABASE_URL"), "{error}");
}

#[test]
fn a_hosted_gateway_serves_the_others_without_a_token_for_dispatch() {
    let hosted = ["--database-url", "postgres://db/x", "--master-key", KEY];
    let with = |flags: &[&str]| resolve(&[&hosted, flags].concat()).1.unwrap();
    let config = with(&["--internal-listen", "10.0.0.7:9090"]);
    assert!(
        config
            .internal
            .is_some_and(|internal| internal.token.is_none())
    );
    assert!(!config.prefer_local);
    assert!(with(&["--prefer-local"]).prefer_local);
    assert!(with(&["--prefer-local", "1"]).prefer_local);
    assert!(!with(&["--prefer-local", "0"]).prefer_local);
}

#[test]
fn the_internal_listener_of_an_embedded_gateway_starts_only_with_address_and_token() {
    let internal = |flags: &[&str]| resolve(flags).1.unwrap().internal.is_some();
    assert!(!internal(&["--internal-listen", "127.0.0.1:9090"]));
    assert!(!internal(&["--internal-token", "t"]));
    assert!(!internal(&[
        "--internal-listen",
        "127.0.0.1:9090",
        "--internal-token",
        " "
    ]));
    assert!(internal(&[
        "--internal-listen",
        "127.0.0.1:9090",
        "--internal-token",
        "t"
    ]));
}

#[test]
fn lists_switches_and_intervals_are_read() {
    let config = resolve(&[
        "--trusted-proxies=10.0.0.0/8, 192.168.1.1,::1",
        "--inline-allow=",
        "--tag-sql",
        "--advertise-url=http://10.0.0.7:9090",
        "--timing=sweep=200ms, gateway_lease=2s,max_deadline=20m",
    ])
    .1
    .unwrap();
    assert_eq!(config.trusted_proxies.len(), 3);
    assert!(config.inline_allow.is_empty());
    assert!(config.tag_sql);
    assert_eq!(config.timing.sweep, Duration::from_millis(200));
    assert_eq!(config.timing.gateway_lease, Duration::from_secs(2));
    assert_eq!(config.timing.max_deadline, Duration::from_secs(1200));
    assert_eq!(config.timing.ping, Timing::default().ping);
}

#[test]
fn every_mistake_names_its_variable_and_what_would_be_right() {
    for (flags, variable, hint) in [
        (
            &["--listen", "localhost"][..],
            "SEMILAYER_LISTEN",
            "127.0.0.1:8080",
        ),
        (
            &["--internal-listen", "9090"],
            "SEMILAYER_INTERNAL_LISTEN",
            "`9090`",
        ),
        (
            &["--database-url", "mysql://db"],
            "SEMILAYER_DATABASE_URL",
            "postgres://",
        ),
        (
            &["--database-url", "sqlite://"],
            "SEMILAYER_DATABASE_URL",
            "path",
        ),
        (
            &["--advertise-url", "10.0.0.7:9090"],
            "SEMILAYER_ADVERTISE_URL",
            "http://",
        ),
        (
            &["--master-key", "c2hvcnQ="],
            "SEMILAYER_MASTER_KEY",
            "openssl rand",
        ),
        (
            &["--master-key-previous", "#"],
            "SEMILAYER_MASTER_KEY_PREVIOUS",
            "32 bytes",
        ),
        (
            &["--trusted-proxies", "10.0.0.0/33"],
            "SEMILAYER_TRUSTED_PROXIES",
            "`10.0.0.0/33`",
        ),
        (
            &["--inline-allow", "db.internal"],
            "SEMILAYER_INLINE_ALLOW",
            "`db.internal`",
        ),
        (&["--compress", "maybe"], "SEMILAYER_COMPRESS", "1 nor 0"),
        (&["--tag-sql", "yes"], "SEMILAYER_TAG_SQL", "1 nor 0"),
        (
            &["--tls-cert", "/nonexistent.pem"],
            "SEMILAYER_TLS_CERT",
            "cannot read",
        ),
        (
            &["--tls-key", "Cargo.toml"],
            "SEMILAYER_TLS_CERT",
            "required",
        ),
        (
            &["--timing", "sweeep=1s"],
            "SEMILAYER_TIMING",
            "did you mean `sweep`",
        ),
        (
            &["--timing", "sweep=0s"],
            "SEMILAYER_TIMING",
            "not a duration",
        ),
        (
            &["--timing", "sweep=1h"],
            "SEMILAYER_TIMING",
            "not a duration",
        ),
        (&["--timing", "sweep"], "SEMILAYER_TIMING", "name=duration"),
    ] {
        let error = error(flags);
        assert!(
            error.starts_with(&format!("{variable} (")) && error.contains(hint),
            "{flags:?}: {error}"
        );
    }
}

#[test]
fn no_secret_is_ever_printed() {
    let config = resolve(&[
        "--database-url=postgres://u:hunter2@db/semilayer",
        "--internal-listen=127.0.0.1:0",
        "--internal-token=hunter2-internal",
        "--operator-token=hunter2-operator",
        &format!("--master-key={KEY}"),
        &format!("--master-key-previous={KEY}"),
    ])
    .1
    .unwrap();
    let printed = format!("{config:?} {:?}", config.redacted());
    assert!(
        !printed.contains("hunter2") && !printed.contains(KEY),
        "{printed}"
    );
    assert!(
        printed.contains("SEMILAYER_OPERATOR_TOKEN=[set]"),
        "{printed}"
    );

    let error = error(&[
        "--database-url=postgres://u:hunter2@:port/x",
        &format!("--master-key={KEY}"),
    ]);
    assert!(!error.contains("hunter2"), "{error}");
}
