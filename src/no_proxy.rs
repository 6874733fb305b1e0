//! `NO_PROXY`: which destinations are reached without a proxy.
//!
//! There is no standard; this understands what curl, Go and the libraries of others do: `*`, names with all
//! that is below them (`x`, `.x`, `*.x`), addresses, networks, and any of them with a port.

use std::net::IpAddr;

use ipnet::IpNet;

/// The destinations that are excepted. This machine always is: no proxy could reach it.
#[derive(Debug, Clone, Default)]
pub struct NoProxy(Vec<Entry>);

#[derive(Debug, Clone)]
struct Entry {
    what: What,
    port: Option<u16>,
}

#[derive(Debug, Clone)]
enum What {
    Everything,
    /// A name, and all that is below it.
    Name(String),
    Network(IpNet),
}

impl NoProxy {
    /// Reads a list, separated by commas or blanks. What cannot be anything is left out.
    pub fn parse(list: &str) -> Self {
        let entries = list.split(|c: char| c == ',' || c.is_whitespace());
        Self(
            entries
                .filter(|entry| !entry.is_empty())
                .filter_map(Entry::parse)
                .collect(),
        )
    }

    /// Whether that destination is reached without a proxy.
    pub fn excepts(&self, scheme: &str, host: &str, port: Option<u16>) -> bool {
        let host = bare(host).to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let address = host
            .parse::<IpAddr>()
            .ok()
            .map(|address| address.to_canonical());
        let port = port.or(match scheme {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            _ => None,
        });
        let here = match address {
            Some(address) => address.is_loopback(),
            None => host == "localhost" || host.ends_with(".localhost"),
        };
        here || self.0.iter().any(|entry| entry.fits(host, address, port))
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            return Some(Self {
                what: What::Everything,
                port: None,
            });
        }
        if let Some(network) = network(&text) {
            return Some(Self {
                what: What::Network(network),
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text.as_str(), None),
        };
        if let Some(network) = network(host) {
            let what = What::Network(network);
            return Some(Self { what, port });
        }
        let name = host.strip_prefix('*').unwrap_or(host);
        let name = name.strip_prefix('.').unwrap_or(name);
        let name = name.strip_suffix('.').unwrap_or(name);
        let what = match name {
            "" if host == "*" => What::Everything,
            "" => return None,
            name => What::Name(name.to_owned()),
        };
        Some(Self { what, port })
    }

    fn fits(&self, host: &str, address: Option<IpAddr>, port: Option<u16>) -> bool {
        let there = match (&self.what, address) {
            (What::Everything, _) => true,
            (What::Network(network), Some(address)) => network.contains(&address),
            (What::Name(name), None) => host
                .strip_suffix(name.as_str())
                .is_some_and(|before| before.is_empty() || before.ends_with('.')),
            _ => false,
        };
        there && self.port.is_none_or(|wanted| Some(wanted) == port)
    }
}

/// A network, or an address as the network that it is.
fn network(text: &str) -> Option<IpNet> {
    if let Ok(network) = text.parse::<IpNet>() {
        return Some(network);
    }
    let address = bare(text).parse::<IpAddr>().ok()?;
    Some(address.to_canonical().into())
}

/// An address without the brackets that it has in a URL.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    fn excepts(list: &str, destination: &str) -> bool {
        let url: Url = destination.parse().unwrap();
        NoProxy::parse(list).excepts(url.scheme(), url.host_str().unwrap(), url.port())
    }

    #[test]
    fn what_is_excepted_and_what_is_not() {
        for (list, destination, expected) in [
            ("*", "https://anything.example", true),
            ("", "https://example.com", false),
            ("example.com", "https://example.com", true),
            ("example.com", "https://g.example.com", true),
            ("example.com", "https://notexample.com", false),
            (".example.com", "https://g.example.com", true),
            ("*.example.com", "https://g.h.example.com", true),
            ("*.example.com", "https://example.org", false),
            ("EXAMPLE.com", "https://g.Example.COM", true),
            ("example.com.", "https://example.com", true),
            ("example.com:8443", "https://example.com:8443", true),
            ("example.com:8443", "https://example.com", false),
            ("example.com:443", "wss://example.com", true),
            ("*.example.com:80", "http://g.example.com", true),
            ("10.1.2.3", "https://10.1.2.3", true),
            ("10.1.2.3", "https://10.1.2.30", false),
            ("10.1.2.3:9000", "https://10.1.2.3:9000", true),
            ("10.1.2.3:9000", "https://10.1.2.3", false),
            ("10.0.0.0/8", "https://10.200.1.1", true),
            ("10.0.0.0/8", "https://11.0.0.1", false),
            ("2001:db8::/32", "https://[2001:db8::1]:8443", true),
            ("2001:db8::1", "https://[2001:db8::1]", true),
            ("[2001:db8::1]:8443", "https://[2001:db8::1]:8443", true),
            ("[2001:db8::1]:8443", "https://[2001:db8::1]", false),
            ("a.example, b.example", "https://b.example", true),
            ("a.example b.example\tc.example", "https://c.example", true),
            (",, ,", "https://example.com", false),
            ("example.com:port", "https://example.com", false),
            // A name is never looked up to see whether its address is excepted.
            ("10.0.0.0/8", "https://ten.example", false),
        ] {
            let found = excepts(list, destination);
            assert_eq!(found, expected, "NO_PROXY={list} {destination}");
        }
    }

    #[test]
    fn this_machine_is_never_reached_through_a_proxy() {
        for (destination, here) in [
            ("ws://localhost:4000", true),
            ("ws://LOCALHOST.:4000", true),
            ("ws://gateway.localhost", true),
            ("ws://127.0.0.1", true),
            ("ws://127.8.9.1", true),
            ("ws://[::1]:4000", true),
            ("ws://[::ffff:127.0.0.1]", true),
            ("ws://localhost.example", false),
            ("ws://128.0.0.1", false),
        ] {
            assert_eq!(excepts("", destination), here, "{destination}");
        }
    }
}
