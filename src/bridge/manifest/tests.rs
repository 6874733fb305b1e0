//! What the manifests say, and what is held against them.

use serde_json::json;

use super::*;

fn map(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[test]
fn manifests_serialise_in_the_documented_form() {
    let postgres = serde_json::to_value(of("postgres").unwrap()).unwrap();
    assert_eq!(postgres["packageName"], "@semilayer/bridge-postgres");
    assert_eq!(postgres["supportsUrl"], true);
    let port = json!({
        "key": "port", "label": "Port", "type": "number", "required": false, "default": 5432, "group": "primary"
    });
    assert_eq!(postgres["fields"][1], port);
    let password = json!({
        "key": "password", "label": "Password", "type": "password", "required": true, "group": "primary"
    });
    assert_eq!(postgres["fields"][4], password);
}

#[test]
fn configurations_are_checked_key_by_key() {
    let fields = json!({"host": "h", "database": "d", "user": "u", "password": "007", "port": 5432, "ssl": true});
    assert_eq!(validate("postgres", &map(&fields)), Ok(()));
    assert_eq!(
        validate("mariadb", &map(&json!({"url": "mysql://h/d"}))),
        Ok(())
    );
    assert_eq!(
        validate("@semilayer/bridge-sqlite", &map(&json!({"path": "/x"}))),
        Ok(())
    );
    let aliases = json!({"host": "h", "db": "d", "username": "u", "pass": "p"});
    assert_eq!(validate("mysql", &map(&aliases)), Ok(()));
    for (bridge, config, wrong) in [
        (
            "postgres",
            json!({"host": "h", "database": "d", "user": "u"}),
            "config.password",
        ),
        ("postgres", json!({"url": "u", "hots": "h"}), "config.hots"),
        (
            "postgres",
            json!({"url": "u", "port": "5432"}),
            "config.port",
        ),
        ("postgres", json!({"url": "u", "ssl": "true"}), "config.ssl"),
        ("postgres", json!({"url": 5}), "config.url"),
        ("sqlite", json!({}), "config.path"),
        ("sqlite", json!({"path": "/x", "url": "u"}), "config.url"),
        ("oracle", json!({}), "bridge"),
    ] {
        let error = validate(bridge, &map(&config)).unwrap_err();
        assert!(
            matches!(&error, BridgeError::Invalid { path, .. } if path == wrong),
            "{config}: {error:?}"
        );
    }
}

/// The settings as the documentation lists them.
fn table(bridge: &str) -> String {
    let mut out = "| setting | type | default | what it is |\n|---|---|---|---|\n".to_owned();
    for field in of(bridge).unwrap().fields {
        let keys = std::iter::once(&field.key).chain(field.aliases);
        let keys: Vec<_> = keys.map(|key| format!("`{key}`")).collect();
        let kind = serde_json::to_value(field.kind).unwrap();
        let default = match field.default {
            Some(Default::Number(number)) => format!("`{number}`"),
            Some(Default::Boolean(flag)) => format!("`{flag}`"),
            None if field.required => "required".to_owned(),
            None => String::new(),
        };
        let hint = field
            .hint
            .map_or_else(String::new, |hint| format!(": {hint}"));
        out.push_str(&format!(
            "| {} | {} | {default} | {}{hint} |\n",
            keys.join(", "),
            kind.as_str().unwrap(),
            field.label
        ));
    }
    out
}

#[test]
fn the_documentation_lists_every_setting() {
    let documented = include_str!("../../../docs/databases.md");
    for bridge in ["postgres", "mysql", "mariadb", "sqlite"] {
        let table = table(bridge);
        assert!(
            documented.contains(&table),
            "{bridge}: docs/databases.md must contain\n{table}"
        );
    }
}

#[test]
fn what_a_url_says_is_checked_before_anything_is_stored() {
    let postgres = |rest: &str| json!({"url": format!("postgres://u:p@h/d{rest}")});
    let mysql = |rest: &str| json!({"url": format!("mysql://u:p@h/d{rest}")});
    for (bridge, config) in [
        ("postgres", postgres("?sslmode=verify-ca&connect_timeout=5")),
        (
            "postgres",
            postgres("?target_session_attrs=any&channel_binding=prefer"),
        ),
        (
            "postgres",
            json!({"url": "postgres://h/d", "user": "u", "port": 1, "sslMode": "allow"}),
        ),
        ("mysql", mysql("?ssl-mode=VERIFY_CA")),
        (
            "mysql",
            json!({"url": "mysql://h/d", "user": "u", "port": 1, "sslMode": "PREFERRED"}),
        ),
        (
            "postgres",
            json!({"url": "postgres://u@h/d", "caCertificate": "/etc/ca.pem"}),
        ),
        ("sqlite", json!({"path": "/x", "maxConnections": 100})),
    ] {
        assert_eq!(validate(bridge, &map(&config)), Ok(()), "{config}");
    }
    let both = |bridge: &str, key: &str, value: Value| {
        let url = format!("{bridge}://u:p@h:1/d?ssl=true");
        json!({"url": url, key: value})
    };
    let mut wrong = vec![
        (
            "postgres",
            json!({"url": "postgres://u@a,b/d"}),
            "config.url",
            "several hosts",
        ),
        (
            "postgres",
            json!({"url": "postgres://u@h:0/d"}),
            "config.url",
            "port",
        ),
        (
            "postgres",
            json!({"url": "postgres://u@h:70000/d"}),
            "config.url",
            "port",
        ),
        (
            "postgres",
            postgres("?sslmode=maybe"),
            "config.url",
            "verify-full",
        ),
        ("mysql", mysql("?ssl-mode=maybe"), "config.url", "VERIFY_CA"),
        (
            "mysql",
            json!({"url": "mysql://a,b/d"}),
            "config.url",
            "several hosts",
        ),
        (
            "postgres",
            json!({"url": "postgres://u@h/d", "port": 70000}),
            "config.port",
            "port",
        ),
        (
            "postgres",
            json!({"url": "postgres://u@h/d", "sslMode": "x"}),
            "config.sslMode",
            "prefer",
        ),
        (
            "mysql",
            json!({"url": "mysql://h/d", "sslMode": "allow"}),
            "config.sslMode",
            "PREFERRED",
        ),
        (
            "mysql",
            json!({"url": "mysql://h/d", "caCertificate": "x"}),
            "config.caCertificate",
            "PEM",
        ),
        (
            "mysql",
            json!({"url": "mysql://h/d", "clientKey": "/k"}),
            "config.clientCertificate",
            "clientKey",
        ),
        (
            "sqlite",
            json!({"path": "/x", "maxConnections": 0}),
            "config.maxConnections",
            "100",
        ),
    ];
    for parameter in [
        "options=x",
        "service=x",
        "target_session_attrs=primary",
        "channel_binding=require",
        "gssencmode=require",
        "sslnegotiation=direct",
        "sslcrl=x",
        "passfile=x",
    ] {
        let name = parameter.split('=').next().unwrap();
        wrong.push((
            "postgres",
            postgres(&format!("?{parameter}")),
            "config.url",
            name,
        ));
    }
    for parameter in ["socket=/x", "compression=zstd", "charset=utf8"] {
        let name = parameter.split('=').next().unwrap();
        wrong.push(("mysql", mysql(&format!("?{parameter}")), "config.url", name));
    }
    for bridge in ["postgres", "mysql"] {
        for (key, path) in [
            ("host", "config.host"),
            ("user", "config.user"),
            ("username", "config.username"),
            ("password", "config.password"),
            ("database", "config.database"),
            ("db", "config.db"),
            ("sslMode", "config.sslMode"),
        ] {
            wrong.push((
                bridge,
                both(bridge, key, json!("disable")),
                path,
                "given in `url` already",
            ));
        }
        wrong.push((
            bridge,
            both(bridge, "port", json!(1)),
            "config.port",
            "given in `url` already",
        ));
        wrong.push((
            bridge,
            both(bridge, "ssl", json!(true)),
            "config.ssl",
            "given in `url` already",
        ));
    }
    for (bridge, config, path, words) in wrong {
        match validate(bridge, &map(&config)).unwrap_err() {
            BridgeError::Invalid {
                path: found,
                message,
            } => {
                assert_eq!(found, path, "{config}: {message}");
                assert!(message.contains(words), "{config}: {message}");
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}

#[test]
fn texts_of_the_environment_are_typed_by_the_manifest() {
    for (key, text, value) in [
        ("password", "007", json!("007")),
        ("username", "42", json!("42")),
        ("url", "1", json!("1")),
        ("port", "5433", json!(5433)),
        ("ssl", "1", json!(true)),
        ("ssl", "false", json!(false)),
    ] {
        assert_eq!(
            typed_value("postgres", key, text),
            Ok(value),
            "{key}={text}"
        );
    }
    for (key, text) in [
        ("ssl", "yes"),
        ("port", "5432x"),
        ("sslmode", "require"),
        ("caCert", "x"),
    ] {
        assert!(typed_value("postgres", key, text).is_err(), "{key}={text}");
    }
}

#[test]
fn secrets_are_passwords_and_urls() {
    assert_eq!(
        secret_keys("postgres").unwrap(),
        ["password", "pass", "clientKey", "url", "connectionString"]
    );
    assert_eq!(secret_keys("sqlite").unwrap(), Vec::<&str>::new());
}
