//! `SEMILAYER_TIMING`: intervals and deadlines by name, for tests that run a failover in a second. Not
//! for production, hence hidden in `--help`.

use std::time::Duration;

use crate::timing::Timing;

/// Declares which intervals have a name; the destructuring fails to compile when one is forgotten.
macro_rules! intervals {
    ($($name:ident),+ $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];

        fn interval<'t>(timing: &'t mut Timing, name: &str) -> Option<&'t mut Duration> {
            let Timing { $($name),+ } = timing;
            match name {
                $(stringify!($name) => Some($name),)+
                _ => None,
            }
        }
    };
}

intervals! {
    heartbeat_v1, heartbeat_v2, close_after_unroutable, ping, cut_off_v2, cut_off_v1, persist_heartbeats,
    stale_claim, sweep, gateway_lease, gateway_renewal, catalogue_poll, full_pass, coalesce, key_freshness,
    default_deadline, max_deadline, deadline_grace, drain, serve_on, hold_retry, moving_grace, pending_poll,
    keep_result, hello, stuck_output,
}

/// Reads `name=duration,…` over the defaults, e.g. `sweep=200ms,gateway_lease=2s`; `Err` is the reason.
pub fn parse_timing(text: &str) -> Result<Timing, String> {
    let mut timing = Timing::default();
    for entry in text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
    {
        let (name, value) = entry.split_once('=').ok_or_else(|| {
            format!("`{entry}` is not of the form `name=duration`, e.g. `sweep=200ms`")
        })?;
        let target = interval(&mut timing, name.trim()).ok_or_else(|| unknown(name.trim()))?;
        *target = parse_duration(value.trim()).ok_or_else(|| {
            format!("`{value}` of `{name}` is not a duration such as `200ms`, `10s` or `5m`")
        })?;
    }
    Ok(timing)
}

fn unknown(name: &str) -> String {
    let closest = NAMES
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    format!(
        "there is no interval `{name}`; did you mean `{}`?",
        closest.unwrap_or(&"")
    )
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}
