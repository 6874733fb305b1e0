//! Makes up a shop: the same customers, products and orders on every machine, from a fixed seed and a
//! fixed calendar. Writes nothing.

use chrono::{DateTime, SecondsFormat, TimeDelta};

const CUSTOMERS: u32 = 500;
const ORDERS: u32 = 2000;
/// 1 January 2025, when the first order came.
const OPENING: i64 = 1_735_689_600;
/// How long before that the first customer came, so that nobody orders before they are one.
const HEAD_START_SECONDS: i64 = 20 * 24 * 60 * 60;
const YEAR_SECONDS: u32 = 365 * 24 * 60 * 60;

const FIRST_NAMES: &[&str] = &[
    "Ada", "Amara", "Anders", "Beatriz", "Chidi", "Chloe", "Dana", "Elif", "Emil", "Fatima",
    "Grace", "Hugo", "Ines", "Jonas", "Kenji", "Leila", "Linus", "Maya", "Mei", "Noah", "Olga",
    "Pablo", "Priya", "Rafael", "Sofia", "Tariq", "Uma", "Viktor", "Yara", "Zoe",
];
const LAST_NAMES: &[&str] = &[
    "Abebe",
    "Andersson",
    "Baker",
    "Costa",
    "Dubois",
    "Eriksen",
    "Fischer",
    "Garcia",
    "Haddad",
    "Ivanova",
    "Jansen",
    "Kaya",
    "Kowalski",
    "Lindgren",
    "Martin",
    "Moreau",
    "Nakamura",
    "Novak",
    "Okafor",
    "Patel",
    "Quinn",
    "Rossi",
    "Schmidt",
    "Silva",
    "Tanaka",
    "Virtanen",
    "Weber",
    "Yilmaz",
];
const CITIES: &[(&str, &str)] = &[
    ("Amsterdam", "NL"),
    ("Athens", "GR"),
    ("Barcelona", "ES"),
    ("Berlin", "DE"),
    ("Bristol", "GB"),
    ("Copenhagen", "DK"),
    ("Dublin", "IE"),
    ("Hamburg", "DE"),
    ("Helsinki", "FI"),
    ("Istanbul", "TR"),
    ("Lisbon", "PT"),
    ("Lyon", "FR"),
    ("Milan", "IT"),
    ("Oslo", "NO"),
    ("Paris", "FR"),
    ("Porto", "PT"),
    ("Prague", "CZ"),
    ("Stockholm", "SE"),
    ("Vienna", "AT"),
    ("Warsaw", "PL"),
];
/// Category, prefix of the SKU, nouns, and the range of prices in cents.
const SHELVES: &[(&str, &str, &[&str], u32, u32)] = &[
    (
        "coffee",
        "COF",
        &[
            "Espresso Beans",
            "Filter Roast",
            "Decaf Blend",
            "Cold Brew Pack",
            "Sampler Box",
        ],
        790,
        2490,
    ),
    (
        "tea",
        "TEA",
        &[
            "Green Sencha",
            "Earl Grey",
            "Chamomile",
            "Masala Chai",
            "Oolong",
        ],
        490,
        1890,
    ),
    (
        "equipment",
        "EQP",
        &[
            "Hand Grinder",
            "Pour-over Set",
            "Moka Pot",
            "Milk Frother",
            "Kettle",
        ],
        1990,
        14990,
    ),
    (
        "cups",
        "CUP",
        &[
            "Stoneware Mug",
            "Espresso Cup",
            "Travel Mug",
            "Tea Glass",
            "Cupping Bowl",
        ],
        890,
        3490,
    ),
    (
        "books",
        "BOO",
        &[
            "Brewing Guide",
            "Tea Atlas",
            "Latte Art",
            "Roasting at Home",
            "Cafe Recipes",
        ],
        1490,
        3990,
    ),
];
const VARIETIES: &[&str] = &["Classic", "House", "Organic", "Limited", "Large"];

/// A whole shop; ids are positions, from 1.
pub(super) struct Shop {
    pub(super) customers: Vec<Customer>,
    pub(super) products: Vec<Product>,
    pub(super) orders: Vec<Order>,
}

/// Somebody who orders.
pub(super) struct Customer {
    pub(super) name: String,
    pub(super) email: String,
    pub(super) city: &'static str,
    pub(super) country: &'static str,
    pub(super) created_at: String,
}

/// Something to order.
pub(super) struct Product {
    pub(super) sku: String,
    pub(super) name: String,
    pub(super) category: &'static str,
    pub(super) price_cents: u32,
    pub(super) stock: u32,
}

/// An order with what was ordered.
pub(super) struct Order {
    pub(super) customer_id: u32,
    pub(super) status: &'static str,
    pub(super) placed_at: String,
    pub(super) shipped_at: Option<String>,
    pub(super) items: Vec<Item>,
}

/// One line of an order.
pub(super) struct Item {
    pub(super) product_id: u32,
    pub(super) quantity: u32,
    pub(super) unit_price_cents: u32,
}

impl Order {
    /// What the customer pays.
    pub(super) fn total_cents(&self) -> u32 {
        self.items
            .iter()
            .map(|item| item.quantity * item.unit_price_cents)
            .sum()
    }
}

impl Shop {
    /// Makes up the shop.
    pub(super) fn make_up() -> Self {
        let mut chance = Chance(2025);
        let products = products(&mut chance);
        let customers = (0..CUSTOMERS)
            .map(|index| customer(&mut chance, index))
            .collect();
        let orders = (0..ORDERS)
            .map(|index| order(&mut chance, index, &products))
            .collect();
        Self {
            customers,
            products,
            orders,
        }
    }
}

fn products(chance: &mut Chance) -> Vec<Product> {
    let mut products = Vec::new();
    for (category, prefix, nouns, cheapest, dearest) in SHELVES {
        for (noun, variety) in nouns
            .iter()
            .flat_map(|noun| VARIETIES.iter().map(move |variety| (noun, variety)))
        {
            products.push(Product {
                sku: format!("{prefix}-{:03}", products.len() + 1),
                name: format!("{variety} {noun}"),
                category,
                price_cents: cheapest + chance.below((dearest - cheapest) / 50) * 50,
                stock: chance.below(200),
            });
        }
    }
    products
}

fn customer(chance: &mut Chance, index: u32) -> Customer {
    let (first, last) = (chance.pick(FIRST_NAMES), chance.pick(LAST_NAMES));
    let (city, country) = *chance.pick(CITIES);
    Customer {
        name: format!("{first} {last}"),
        email: format!(
            "{}.{}{}@example.com",
            first.to_lowercase(),
            last.to_lowercase(),
            index + 1
        ),
        city,
        country,
        created_at: time(YEAR_SECONDS / CUSTOMERS * index / 2, -HEAD_START_SECONDS),
    }
}

fn order(chance: &mut Chance, index: u32, products: &[Product]) -> Order {
    // Later orders come from more customers, as the shop becomes known.
    let known = CUSTOMERS / 10 + (CUSTOMERS - CUSTOMERS / 10) * index / ORDERS;
    let placed = YEAR_SECONDS / ORDERS * index + chance.below(YEAR_SECONDS / ORDERS);
    let status = match (index * 100 / ORDERS, chance.below(100)) {
        (_, 0..4) => "cancelled",
        (97.., _) => "placed",
        (93..97, _) => "paid",
        (_, 4..8) => "returned",
        _ => "shipped",
    };
    let shipped = matches!(status, "shipped" | "returned");
    let items = (0..=chance.below(4))
        .map(|_| item(chance, products))
        .collect();
    Order {
        customer_id: chance.below(known) + 1,
        status,
        placed_at: time(placed, 0),
        shipped_at: shipped
            .then(|| time(placed, 6 * 3600 + i64::from(chance.below(3 * 24 * 3600)))),
        items,
    }
}

fn item(chance: &mut Chance, products: &[Product]) -> Item {
    // The smaller of two draws: a few products sell much better than the rest.
    let count = u32::try_from(products.len()).unwrap_or(u32::MAX);
    let index = chance.below(count).min(chance.below(count));
    Item {
        product_id: index + 1,
        quantity: 1 + chance.below(3),
        unit_price_cents: products[index as usize].price_cents,
    }
}

fn time(seconds: u32, shift: i64) -> String {
    let time = DateTime::UNIX_EPOCH + TimeDelta::seconds(OPENING + i64::from(seconds) + shift);
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The `SplitMix64` generator: tiny, and unlike a library's it never changes its sequence.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `limit` − 1.
    fn below(&mut self, limit: u32) -> u32 {
        // The high half times the limit: the quotient is below the limit, so it fits.
        u32::try_from(((self.next() >> 32) * u64::from(limit)) >> 32).unwrap_or(0)
    }

    fn pick<T>(&mut self, from: &'static [T]) -> &'static T {
        let count = u32::try_from(from.len()).unwrap_or(u32::MAX);
        &from[self.below(count) as usize]
    }
}
