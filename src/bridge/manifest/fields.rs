//! The settings of each bridge, in the order of their forms.

use super::{Default, Field, FieldType, Group, Manifest};

const fn field(key: &'static str, label: &'static str, kind: FieldType, required: bool) -> Field {
    Field {
        key,
        label,
        kind,
        required,
        default: None,
        placeholder: None,
        hint: None,
        group: Group::Primary,
        aliases: &[],
    }
}

const fn server_fields(port: u32, host: &'static str) -> [Field; 5] {
    [
        Field {
            placeholder: Some(host),
            ..field("host", "Host", FieldType::String, true)
        },
        Field {
            default: Some(Default::Number(port)),
            ..field("port", "Port", FieldType::Number, false)
        },
        Field {
            aliases: &["db"],
            ..field("database", "Database", FieldType::String, true)
        },
        Field {
            aliases: &["username"],
            ..field("user", "User", FieldType::String, true)
        },
        Field {
            aliases: &["pass"],
            ..field("password", "Password", FieldType::Password, true)
        },
    ]
}

const SSL: Field = Field {
    default: Some(Default::Boolean(false)),
    hint: Some("Encrypts the connection and checks the server's certificate"),
    group: Group::Advanced,
    ..field("ssl", "TLS", FieldType::Boolean, false)
};

const SSL_MODE: Field = Field {
    hint: Some("disable, allow, prefer, require, verify-ca or verify-full"),
    group: Group::Advanced,
    ..field("sslMode", "TLS mode", FieldType::String, false)
};

const CA_CERTIFICATE: Field = Field {
    hint: Some("PEM text, or the path of a file where the query runs; alone it means verify-full"),
    group: Group::Advanced,
    ..field(
        "caCertificate",
        "Certificate authority",
        FieldType::String,
        false,
    )
};

const CLIENT_CERTIFICATE: Field = Field {
    hint: Some("PEM text, or the path of a file where the query runs"),
    group: Group::Advanced,
    ..field(
        "clientCertificate",
        "Client certificate",
        FieldType::String,
        false,
    )
};

const CLIENT_KEY: Field = Field {
    hint: Some("PEM text, or the path of a file where the query runs"),
    group: Group::Advanced,
    ..field(
        "clientKey",
        "Key of the client certificate",
        FieldType::Password,
        false,
    )
};

const IP_FAMILY: Field = Field {
    default: Some(Default::Number(4)),
    hint: Some("4, 6, or 0 for whatever the name has"),
    group: Group::Advanced,
    ..field("ipFamily", "IP version", FieldType::Number, false)
};

const CONNECTION_TIMEOUT: Field = Field {
    default: Some(Default::Number(10_000)),
    hint: Some("0 waits until the query's deadline"),
    group: Group::Advanced,
    ..field(
        "connectionTimeoutMillis",
        "Connection timeout (ms)",
        FieldType::Number,
        false,
    )
};

const POSTGRES_FIELDS: [Field; 13] = {
    let [host, port, database, user, password] = server_fields(5432, "db.internal");
    [
        host,
        port,
        database,
        user,
        password,
        SSL,
        SSL_MODE,
        CA_CERTIFICATE,
        CLIENT_CERTIFICATE,
        CLIENT_KEY,
        IP_FAMILY,
        CONNECTION_TIMEOUT,
        MAX_CONNECTIONS,
    ]
};

const MYSQL_FIELDS: [Field; 13] = {
    let [host, port, database, user, password] = server_fields(3306, "db.internal");
    [
        host,
        port,
        database,
        user,
        password,
        SSL,
        Field {
            hint: Some("DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY"),
            ..SSL_MODE
        },
        CA_CERTIFICATE,
        CLIENT_CERTIFICATE,
        CLIENT_KEY,
        IP_FAMILY,
        CONNECTION_TIMEOUT,
        MAX_CONNECTIONS,
    ]
};

const MAX_CONNECTIONS: Field = Field {
    default: Some(Default::Number(4)),
    hint: Some("How many queries run at once from each runner, 1 to 100; others wait their turn"),
    group: Group::Advanced,
    ..field("maxConnections", "Connections", FieldType::Number, false)
};

const SQLITE_FIELDS: [Field; 2] = [
    Field {
        placeholder: Some("/var/lib/app/data.db"),
        hint: Some("A file on the machine that runs the query; it is opened read-only"),
        ..field("path", "Path", FieldType::String, true)
    },
    MAX_CONNECTIONS,
];

pub(super) const MANIFESTS: &[Manifest] = &[
    Manifest {
        package_name: "@semilayer/bridge-postgres",
        display_name: "PostgreSQL",
        supports_url: true,
        url_placeholder: Some("postgres://user:password@host:5432/database?sslmode=verify-full"),
        fields: &POSTGRES_FIELDS,
    },
    Manifest {
        package_name: "@semilayer/bridge-mysql",
        display_name: "MySQL",
        supports_url: true,
        url_placeholder: Some("mysql://user:password@host:3306/database"),
        fields: &MYSQL_FIELDS,
    },
    Manifest {
        package_name: "@semilayer/bridge-mariadb",
        display_name: "MariaDB",
        supports_url: true,
        url_placeholder: Some("mysql://user:password@host:3306/database"),
        fields: &MYSQL_FIELDS,
    },
    Manifest {
        package_name: "@semilayer/bridge-sqlite",
        display_name: "SQLite",
        supports_url: false,
        url_placeholder: None,
        fields: &SQLITE_FIELDS,
    },
];
