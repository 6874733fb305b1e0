//! Every interval, lease and deadline of the system, and the inequalities between them that the design
//! rests on. All of them can be set, so that a test runs a whole failover in a second.

use std::time::Duration;

/// The system's intervals, leases and deadlines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// How often a protocol 1 runner sends a heartbeat (fixed by the runners in the field).
    pub heartbeat_v1: Duration,
    /// How often a protocol 2 runner is told to send a heartbeat.
    pub heartbeat_v2: Duration,
    /// How long after it became unroutable a session is closed with 4008.
    pub close_after_unroutable: Duration,
    /// How often the gateway pings a runner.
    pub ping: Duration,
    /// A protocol 2 runner that has heard nothing for this long considers itself cut off.
    pub cut_off_v2: Duration,
    /// The same for a protocol 1 runner.
    pub cut_off_v1: Duration,
    /// How often last-seen times are written to the store.
    pub persist_heartbeats: Duration,
    /// A claim that is older than this and was never sent goes back to `pending`.
    pub stale_claim: Duration,
    /// How often the sweeper passes.
    pub sweep: Duration,
    /// A gateway whose renewal counter stands still for this long is lost.
    pub gateway_lease: Duration,
    /// How often a gateway renews its presence.
    pub gateway_renewal: Duration,
    /// How often what has changed in the catalogue is read, whatever was announced.
    pub catalogue_poll: Duration,
    /// How often the whole catalogue is read again.
    pub full_pass: Duration,
    /// How long announcements of changes are collected before they are read.
    pub coalesce: Duration,
    /// A gateway that has not read the catalogue for this long believes no key.
    pub key_freshness: Duration,
    /// A job's deadline when neither the request nor the source names one.
    pub default_deadline: Duration,
    /// The longest deadline that can be asked for.
    pub max_deadline: Duration,
    /// How long after its deadline a job may still be unfinished before the sweeper expires it.
    pub deadline_grace: Duration,
    /// How long running jobs get to finish when a process is told to stop.
    pub drain: Duration,
    /// How long requests are still served after a gateway that others stand in for was told to stop, so that
    /// load balancers notice before it is gone.
    pub serve_on: Duration,
    /// How often a job that is held for want of a runner is offered again.
    pub hold_retry: Duration,
    /// How long a job is held, unasked, while its runners are moving between gateways or being restarted.
    pub moving_grace: Duration,
    /// How often a gateway looks for detached jobs that it could execute.
    pub pending_poll: Duration,
    /// How long the result of a detached job is kept.
    pub keep_result: Duration,
    /// How long a socket may stay silent before its hello.
    pub hello: Duration,
    /// How long output queued for a runner may stand still before the runner counts as stuck.
    pub stuck_output: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            heartbeat_v1: s(25),
            heartbeat_v2: s(10),
            close_after_unroutable: s(10),
            ping: s(5),
            cut_off_v2: s(12),
            cut_off_v1: s(60),
            persist_heartbeats: s(20),
            stale_claim: s(30),
            sweep: s(30),
            gateway_lease: s(15),
            gateway_renewal: s(5),
            catalogue_poll: s(30),
            full_pass: s(600),
            coalesce: Duration::from_millis(50),
            key_freshness: s(30),
            default_deadline: s(30),
            max_deadline: s(600),
            deadline_grace: s(30),
            drain: s(30),
            serve_on: s(10),
            hold_retry: Duration::from_millis(250),
            moving_grace: s(5),
            pending_poll: s(1),
            keep_result: s(3600),
            hello: s(10),
            stuck_output: s(10),
        }
    }
}

impl Timing {
    /// After how long a silence a session is no longer given jobs: two missed heartbeats.
    pub fn unroutable_after(&self, heartbeat: Duration) -> Duration {
        heartbeat * 2
    }

    /// How often changes are read whatever was announced: often enough that the catalogue stays fresh while
    /// the store answers.
    pub fn delta_pass(&self) -> Duration {
        self.catalogue_poll.min(self.key_freshness / 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_gives_up_before_its_gateway_does_and_a_gateway_before_its_claims() {
        let t = Timing::default();
        assert!(t.ping < t.cut_off_v2);
        assert!(t.cut_off_v2 < t.gateway_lease);
        assert!(t.gateway_lease <= t.stale_claim);
        assert!(t.gateway_renewal * 2 < t.gateway_lease);
        assert!(t.heartbeat_v1 * 2 < t.cut_off_v1);
        assert!(t.default_deadline <= t.max_deadline);
        assert!(t.serve_on < t.drain);
        assert!(t.hold_retry * 4 < t.moving_grace);
    }

    #[test]
    fn one_read_of_the_catalogue_may_fail_before_keys_are_refused() {
        let t = Timing::default();
        assert!(t.delta_pass() * 2 < t.key_freshness);
        assert!(t.key_freshness <= t.catalogue_poll && t.catalogue_poll < t.full_pass);
        assert!(t.coalesce < t.delta_pass());
    }

    #[test]
    fn no_job_stays_unfinished_for_longer_than_a_minute_after_its_deadline() {
        let t = Timing::default();
        assert!(t.deadline_grace + t.sweep <= Duration::from_secs(60));
    }
}
