//! Where a hosted gateway may dial for a tenant: not into its own network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Whether inline execution may connect to `address`; `allow` names private networks that it may.
pub fn may_dial(address: IpAddr, allow: &[IpNet]) -> bool {
    let address = address.to_canonical();
    allow.iter().any(|net| net.contains(&address)) || is_public(address)
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    !(v4.is_unspecified()
        || v4.is_loopback()
        || v4.is_private()
        || v4.is_link_local()
        || v4.is_broadcast()
        || v4.is_multicast()
        || a == 0
        // Shared address space of carriers (RFC 6598), which clouds use inside.
        || (a == 100 && (64..128).contains(&b))
        // Benchmarking (RFC 2544) and what is reserved (RFC 1112).
        || (a == 198 && (b == 18 || b == 19))
        || a >= 240)
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let [first, second, ..] = v6.segments();
    // Addresses that hold an IPv4 one: NAT64 (64:ff9b::/96, RFC 6052), 6to4 (2002::/16), and the compatible
    // form (::/96). The mapped form was made IPv4 before.
    let embedded = match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => Some((high, low)),
        [0x2002, high, low, ..] => Some((high, low)),
        _ => None,
    };
    if let Some((high, low)) = embedded {
        return is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    }
    !(v6.is_unspecified()
        || v6.is_loopback()
        || v6.is_multicast()
        || v6.is_unique_local()
        || v6.is_unicast_link_local()
        // Site-local (fec0::/10, RFC 3879) and documentation (2001:db8::/32).
        || first & 0xffc0 == 0xfec0
        || (first == 0x2001 && second == 0xdb8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_reaches_the_internet_and_not_the_gateways_network() {
        for public in [
            "8.8.8.8",
            "93.184.216.34",
            "2606:4700::1111",
            "64:ff9b::808:808",
        ] {
            assert!(may_dial(public.parse().unwrap(), &[]), "{public}");
        }
        for private in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "fec0::1",
            "ff02::1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
        ] {
            assert!(!may_dial(private.parse().unwrap(), &[]), "{private}");
        }
    }

    #[test]
    fn a_listed_network_is_allowed_also_in_its_mapped_form() {
        let allow = ["10.1.0.0/16".parse().unwrap()];
        assert!(may_dial("10.1.2.3".parse().unwrap(), &allow));
        assert!(may_dial("::ffff:10.1.2.3".parse().unwrap(), &allow));
        assert!(!may_dial("10.2.0.1".parse().unwrap(), &allow));
    }
}
