//! The demo database: a small shop in SQLite, the same on every machine.
//!
//! [`data`] makes up the shop; this file writes it down, whole or not at all.

mod data;

use std::fs;
use std::path::Path;

use anyhow::Context;
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use data::Shop;

/// A table of the demo database and the lens that opens it.
pub(super) struct Table {
    /// The name of both.
    pub(super) name: &'static str,
    /// Output name, type and column of each field.
    fields: &'static [(&'static str, &'static str, &'static str)],
    /// Whether browsers may query it.
    public: bool,
}

/// The tables, each with a lens of the same name.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "customers",
        fields: &[
            ("id", "number", "id"),
            ("name", "text", "name"),
            ("email", "text", "email"),
            ("city", "text", "city"),
            ("country", "text", "country"),
            ("createdAt", "date", "created_at"),
        ],
        public: false,
    },
    Table {
        name: "products",
        fields: &[
            ("id", "number", "id"),
            ("sku", "text", "sku"),
            ("name", "text", "name"),
            ("category", "text", "category"),
            ("price", "number", "price"),
            ("stock", "number", "stock"),
        ],
        public: true,
    },
    Table {
        name: "orders",
        fields: &[
            ("id", "number", "id"),
            ("customerId", "number", "customer_id"),
            ("status", "text", "status"),
            ("total", "number", "total"),
            ("placedAt", "date", "placed_at"),
            ("shippedAt", "date", "shipped_at"),
        ],
        public: false,
    },
    Table {
        name: "order_items",
        fields: &[
            ("id", "number", "id"),
            ("orderId", "number", "order_id"),
            ("productId", "number", "product_id"),
            ("quantity", "number", "quantity"),
            ("unitPrice", "number", "unit_price"),
        ],
        public: false,
    },
];

impl Table {
    /// The lens, as the REST API takes it.
    pub(super) fn lens(&self, source_id: &str) -> Value {
        let fields = self.fields.iter().map(|(name, kind, column)| {
            let field = if name == column {
                json!({ "type": kind })
            } else {
                json!({ "type": kind, "from": column })
            };
            ((*name).to_owned(), field)
        });
        json!({
            "name": self.name,
            "sourceId": source_id,
            "table": self.name,
            "primaryKey": "id",
            "fields": serde_json::Map::from_iter(fields),
            "grants": if self.public { json!({ "query": "public" }) } else { json!({}) },
        })
    }
}

const SCHEMA: &str = "
    CREATE TABLE customers (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        email TEXT NOT NULL UNIQUE,
        city TEXT NOT NULL,
        country TEXT NOT NULL,
        created_at TEXT NOT NULL
    );
    CREATE TABLE products (
        id INTEGER PRIMARY KEY,
        sku TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        category TEXT NOT NULL,
        price REAL NOT NULL,
        stock INTEGER NOT NULL
    );
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY,
        customer_id INTEGER NOT NULL REFERENCES customers (id),
        status TEXT NOT NULL,
        total REAL NOT NULL,
        placed_at TEXT NOT NULL,
        shipped_at TEXT
    );
    CREATE INDEX orders_customer_id ON orders (customer_id);
    CREATE TABLE order_items (
        id INTEGER PRIMARY KEY,
        order_id INTEGER NOT NULL REFERENCES orders (id),
        product_id INTEGER NOT NULL REFERENCES products (id),
        quantity INTEGER NOT NULL,
        unit_price REAL NOT NULL
    );
    CREATE INDEX order_items_order_id ON order_items (order_id);
";

/// Writes the demo database unless it is there already; a process that dies half-way leaves none.
pub(super) fn create(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let fresh = path.with_extension("db.new");
    let cannot = || format!("cannot create the demo database {}", path.display());
    if fresh.exists() {
        fs::remove_file(&fresh).with_context(cannot)?;
    }
    write(&fresh, &Shop::make_up()).with_context(cannot)?;
    fs::rename(&fresh, path).with_context(cannot)
}

fn write(path: &Path, shop: &Shop) -> rusqlite::Result<()> {
    let mut database = Connection::open(path)?;
    database.execute_batch(SCHEMA)?;
    let transaction = database.transaction()?;
    {
        let mut insert = transaction.prepare("INSERT INTO customers VALUES (?, ?, ?, ?, ?, ?)")?;
        for (id, c) in (1..).zip(&shop.customers) {
            insert.execute(params![
                id,
                c.name,
                c.email,
                c.city,
                c.country,
                c.created_at
            ])?;
        }
        let mut insert = transaction.prepare("INSERT INTO products VALUES (?, ?, ?, ?, ?, ?)")?;
        for (id, p) in (1..).zip(&shop.products) {
            insert.execute(params![
                id,
                p.sku,
                p.name,
                p.category,
                euros(p.price_cents),
                p.stock
            ])?;
        }
        let mut insert = transaction.prepare("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)")?;
        let mut insert_item = transaction.prepare(
            "INSERT INTO order_items (order_id, product_id, quantity, unit_price) VALUES (?, ?, ?, ?)",
        )?;
        for (id, o) in (1..).zip(&shop.orders) {
            insert.execute(params![
                id,
                o.customer_id,
                o.status,
                euros(o.total_cents()),
                o.placed_at,
                o.shipped_at
            ])?;
            for item in &o.items {
                insert_item.execute(params![
                    id,
                    item.product_id,
                    item.quantity,
                    euros(item.unit_price_cents)
                ])?;
            }
        }
    }
    transaction.commit()
}

fn euros(cents: u32) -> f64 {
    f64::from(cents) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (tempfile::TempDir, Connection) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("demo.db");
        create(&path).unwrap();
        (directory, Connection::open(path).unwrap())
    }

    fn count(database: &Connection, sql: &str) -> i64 {
        database.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Every row of every table, in order.
    fn contents(database: &Connection) -> String {
        let mut contents = String::new();
        for table in TABLES {
            let mut rows = database
                .prepare(&format!("SELECT * FROM {} ORDER BY id", table.name))
                .unwrap();
            let columns = rows.column_count();
            let mut rows = rows.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                for column in 0..columns {
                    contents += &format!("{:?},", row.get_ref(column).unwrap());
                }
            }
        }
        contents
    }

    #[test]
    fn the_demo_is_the_same_every_time() {
        assert_eq!(contents(&made().1), contents(&made().1));
    }

    #[test]
    fn a_few_thousand_rows_refer_to_each_other() {
        let (_directory, database) = made();
        assert_eq!(count(&database, "SELECT count(*) FROM customers"), 500);
        assert_eq!(count(&database, "SELECT count(*) FROM orders"), 2000);
        assert!(count(&database, "SELECT count(*) FROM order_items") > 4000);
        assert_eq!(
            count(&database, "SELECT count(*) FROM pragma_foreign_key_check"),
            0
        );
        assert!(
            count(
                &database,
                "SELECT count(*) FROM orders WHERE shipped_at IS NULL"
            ) > 100
        );
        let early = "SELECT count(*) FROM orders o JOIN customers c ON c.id = o.customer_id WHERE o.placed_at < c.created_at";
        assert_eq!(count(&database, early), 0);
    }

    #[test]
    fn totals_are_the_sums_of_their_items() {
        let (_directory, database) = made();
        let wrong = "SELECT count(*) FROM orders o WHERE abs(o.total - (SELECT sum(quantity * unit_price) \
                     FROM order_items i WHERE i.order_id = o.id)) > 0.001";
        assert_eq!(count(&database, wrong), 0);
    }

    #[test]
    fn every_lens_shows_columns_that_exist() {
        let (_directory, database) = made();
        for table in TABLES {
            for (_, _, column) in table.fields {
                database
                    .prepare(&format!("SELECT {column} FROM {}", table.name))
                    .unwrap();
            }
            assert_eq!(table.lens("s")["primaryKey"], "id");
        }
    }

    #[test]
    fn a_database_that_is_there_is_left_alone() {
        let (directory, database) = made();
        database.execute("DELETE FROM order_items", []).unwrap();
        create(&directory.path().join("demo.db")).unwrap();
        assert_eq!(count(&database, "SELECT count(*) FROM order_items"), 0);
    }
}
