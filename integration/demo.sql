-- The customer's database of the topology: a shop with 100 customers and 5,000 orders, and the role that
-- the runners connect as, which can only read.

CREATE TABLE customers (
    id integer PRIMARY KEY,
    name text NOT NULL,
    country text NOT NULL
);

CREATE TABLE orders (
    id integer PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES customers,
    status text NOT NULL,
    total numeric(10, 2) NOT NULL,
    placed_at timestamptz NOT NULL
);

INSERT INTO customers
SELECT n, 'Customer ' || n, (ARRAY['DE', 'FR', 'IT', 'PL', 'SE'])[1 + n % 5]
FROM generate_series(1, 100) n;

INSERT INTO orders
SELECT n, 1 + n * 7 % 100, (ARRAY['new', 'paid', 'shipped', 'returned'])[1 + n % 4],
       (n * 7919 % 50000) / 100.0, timestamptz '2026-01-01 00:00:00+00' + n * interval '17 minutes'
FROM generate_series(1, 5000) n;

CREATE ROLE semilayer LOGIN PASSWORD 'reads-only';
GRANT USAGE ON SCHEMA public TO semilayer;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO semilayer;
