//! Who is on the other end: the client's address, taken from `X-Forwarded-For` only through proxies that
//! are trusted, and the throttle on failed authentications.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use actix_web::HttpRequest;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use ipnet::IpNet;

use super::error::{ApiError, Code};

/// Failures of one token prefix from one address that are answered at once.
const PER_TOKEN: NonZeroU32 = NonZeroU32::new(10).unwrap();
/// Failures of one address, whatever the token, that are answered at once.
const PER_ADDRESS: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// How long it takes until one more is.
const REFILL: Duration = Duration::from_secs(3);
/// How many characters of a token tell one client's mistake from another's; too few to guess the rest.
const PREFIX_CHARS: usize = 12;
/// Above this many remembered addresses those that have been quiet are forgotten.
const FORGET_ABOVE: usize = 10_000;

/// The proxies whose `X-Forwarded-For` is believed.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// The proxies in these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// The client's address: the last one of the chain that no trusted proxy has.
    pub fn client(&self, request: &HttpRequest) -> IpAddr {
        let peer = request
            .peer_addr()
            .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |peer| {
                peer.ip().to_canonical()
            });
        let forwarded = request
            .headers()
            .get_all("x-forwarded-for")
            .filter_map(|value| value.to_str().ok());
        let chain: Vec<IpAddr> = forwarded
            .flat_map(|value| value.split(','))
            // A hop that is no address hides whatever stands before it.
            .map(|hop| hop.trim().parse().map(|ip: IpAddr| ip.to_canonical()))
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .map_while(Result::ok)
            .collect();
        self.last_untrusted(peer, &chain)
    }

    /// Walks from the peer outwards, as long as the hop that reported the next one is trusted.
    fn last_untrusted(&self, peer: IpAddr, outwards: &[IpAddr]) -> IpAddr {
        let mut client = peer;
        for hop in outwards {
            if !self.trusts(client) {
                break;
            }
            client = *hop;
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&address))
    }
}

/// Slows down whoever guesses keys. It counts failures only: a valid key is never held up by it.
pub struct FailureThrottle {
    by_address: DefaultKeyedRateLimiter<IpAddr>,
    by_token: DefaultKeyedRateLimiter<(IpAddr, String)>,
    clock: DefaultClock,
}

impl Default for FailureThrottle {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "REFILL is a constant above zero")]
        let quota = |burst| {
            Quota::with_period(REFILL)
                .expect("a period above zero")
                .allow_burst(burst)
        };
        Self {
            by_address: RateLimiter::keyed(quota(PER_ADDRESS)),
            by_token: RateLimiter::keyed(quota(PER_TOKEN)),
            clock: DefaultClock::default(),
        }
    }
}

impl FailureThrottle {
    /// Counts a failure of `token` from `client`; answers `failure`, or 429 when there were too many.
    pub fn count(&self, client: IpAddr, token: &str, failure: ApiError) -> ApiError {
        if self.by_address.len() + self.by_token.len() > FORGET_ABOVE {
            self.by_address.retain_recent();
            self.by_token.retain_recent();
        }
        let client = network(client);
        let prefix: String = token.chars().take(PREFIX_CHARS).collect();
        let checked = self
            .by_address
            .check_key(&client)
            .and_then(|()| self.by_token.check_key(&(client, prefix)));
        match checked {
            Ok(()) => failure,
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                ApiError::new(Code::RateLimited, "too many failed authentications from this address; check the key and try again later")
                    .retry_after(wait)
            }
        }
    }
}

/// One customer of an IPv6 provider has a whole /64 to choose from.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let proxies = TrustedProxies(trusted.iter().map(|net| net.parse().unwrap()).collect());
        let mut request = TestRequest::default().peer_addr(format!("{peer}:1").parse().unwrap());
        for value in forwarded {
            request = request.append_header(("x-forwarded-for", *value));
        }
        proxies.client(&request.to_http_request()).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        assert_eq!(client(&[], "10.0.0.1", &["1.2.3.4"]), "10.0.0.1");
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(
            client(&["10.0.0.0/8"], "10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"]),
            "1.2.3.4",
            "what a client prepends"
        );
        assert_eq!(
            client(&["10.0.0.0/8"], "10.0.0.1", &["6.6.6.6", "1.2.3.4"]),
            "1.2.3.4",
            "two headers"
        );
        assert_eq!(
            client(&["10.0.0.0/8"], "10.0.0.1", &["6.6.6.6, garbage"]),
            "10.0.0.1"
        );
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &[]), "10.0.0.1");
    }

    fn failures(throttle: &FailureThrottle, address: &str, token: &str, times: usize) -> usize {
        let refused = |_: &usize| {
            let failure = ApiError::new(Code::InvalidKey, "no");
            throttle
                .count(address.parse().unwrap(), token, failure)
                .code()
                == Code::RateLimited
        };
        (0..times).filter(refused).count()
    }

    #[test]
    fn guessing_is_slowed_down_per_token_and_per_address() {
        let throttle = FailureThrottle::default();
        assert_eq!(failures(&throttle, "1.1.1.1", "sk_default_aaaa1", 10), 0);
        assert_eq!(
            failures(&throttle, "1.1.1.1", "sk_default_aaaa2", 5),
            5,
            "same prefix"
        );
        assert_eq!(
            failures(&throttle, "1.1.1.1", "rk_other_bbbbbbbb", 1),
            0,
            "somebody else behind the same address"
        );
        assert_eq!(
            failures(&throttle, "2.2.2.2", "sk_default_aaaa1", 1),
            0,
            "another address"
        );
        let many = (0..200)
            .map(|n| failures(&throttle, "3.3.3.3", &format!("sk_{n}_xxxxxxxx"), 1))
            .sum::<usize>();
        assert_eq!(many, 100, "an address cannot go on by changing the token");
        assert_eq!(
            network("2001:db8::1".parse().unwrap()),
            network("2001:db8::ffff".parse().unwrap())
        );
    }
}
