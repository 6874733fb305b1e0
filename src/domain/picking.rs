//! Which session gets a job: any of those that can take it, each as likely as another; and if none can,
//! what keeps them from it, runner by runner.

use std::collections::{HashMap, HashSet};
use std::fmt;

use rand::{Rng, RngExt as _};

use crate::ids::{InstanceId, RunnerId, SessionId};

/// The start of a bridge's package name; the rest is its short name.
const PACKAGE: &str = "@semilayer/bridge-";

/// What a job asks of who takes it.
#[derive(Debug, Clone, Copy)]
pub struct JobNeeds<'a> {
    /// The source's bridge, by short name or package.
    pub bridge: &'a str,
    /// Sessions that did not take the job.
    pub declined: &'a [SessionId],
}

/// A runner that is assigned to the source.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// The runner.
    pub runner: RunnerId,
    /// Whether it ever connected.
    pub ever_seen: bool,
    /// Whether an operator has drained it: it gets no jobs though it may be connected.
    pub drained: bool,
    /// Whether it went in good order a moment ago, as one does that moves or is restarted.
    pub moving: bool,
    /// Its sessions, on whichever gateway.
    pub sessions: Vec<CandidateSession<'a>>,
}

/// One session of a candidate.
#[derive(Debug, Clone)]
pub struct CandidateSession<'a> {
    /// The session.
    pub session: SessionId,
    /// The runner's process, if it tells; a process that moves between gateways has two sessions for a while.
    pub instance: Option<InstanceId>,
    /// Whether its heartbeats arrive.
    pub healthy: bool,
    /// Whether it has asked for nothing new.
    pub draining: bool,
    /// Whether there is a way to the gateway that holds it.
    pub reachable: bool,
    /// Its bridges, by short name or package.
    pub bridges: &'a [String],
    /// How many jobs it works on.
    pub active: u32,
    /// How many jobs its process takes at once.
    pub capacity: u32,
}

/// What keeps a runner from taking a job; the first is the closest to taking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Obstacle {
    /// It works on as many jobs as it takes, or has just declined this one.
    Busy,
    /// It does not have the source's bridge.
    LacksBridge,
    /// It is connected and takes nothing new, or went so a moment ago.
    Draining,
    /// An operator has drained it.
    Drained,
    /// It is connected to another gateway, which cannot be reached from here.
    Unreachable,
    /// It was connected and is not.
    Offline,
    /// It never connected.
    NeverConnected,
}

impl Obstacle {
    const ALL: [Self; 7] = [
        Self::Busy,
        Self::LacksBridge,
        Self::Draining,
        Self::Drained,
        Self::Unreachable,
        Self::Offline,
        Self::NeverConnected,
    ];

    /// The obstacle as said of a runner.
    fn predicate(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::LacksBridge => "without the bridge",
            Self::Draining => "shutting down",
            Self::Drained => "drained",
            Self::Unreachable => "behind a gateway that cannot be reached",
            Self::Offline => "offline",
            Self::NeverConnected => "never connected",
        }
    }
}

/// Nobody can take the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoCandidate {
    bridge: String,
    /// How many runners meet each obstacle, those closest to taking the job first.
    obstacles: Vec<(Obstacle, usize)>,
}

impl NoCandidate {
    fn new(needs: &JobNeeds<'_>, obstacles: &HashMap<Obstacle, usize>) -> Self {
        Self {
            bridge: short(needs.bridge).to_owned(),
            obstacles: Obstacle::ALL
                .into_iter()
                .filter_map(|o| obstacles.get(&o).map(|count| (o, *count)))
                .collect(),
        }
    }

    /// Whether waiting a moment may help: somebody is there who could take it, and is only busy.
    pub fn is_busy(&self) -> bool {
        self.obstacles
            .first()
            .is_some_and(|(obstacle, _)| *obstacle == Obstacle::Busy)
    }

    /// Whether waiting a moment may help for another reason: somebody is on the way out, and may be back.
    pub fn is_moving(&self) -> bool {
        self.obstacles
            .iter()
            .any(|(obstacle, _)| *obstacle == Obstacle::Draining)
    }

    /// The machine code of the answer.
    pub fn code(&self) -> &'static str {
        if self.is_busy() {
            "runners_busy"
        } else {
            "no_runners_online"
        }
    }
}

impl fmt::Display for NoCandidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: usize = self.obstacles.iter().map(|(_, count)| count).sum();
        match self.obstacles.as_slice() {
            [] => f.write_str("no runner is assigned to this source"),
            [(Obstacle::LacksBridge, _)] => write!(
                f,
                "{} lacks the bridge `{}`",
                if total == 1 {
                    "the runner that is assigned to this source"
                } else {
                    "every runner of this source"
                },
                self.bridge
            ),
            [(Obstacle::NeverConnected, 1)] => {
                f.write_str("the runner of this source has never connected")
            }
            [(Obstacle::NeverConnected, _)] => write!(
                f,
                "none of the {total} runners of this source has ever connected"
            ),
            [(obstacle, 1)] => write!(f, "the runner of this source is {}", obstacle.predicate()),
            [(obstacle, _)] => write!(
                f,
                "all {total} runners of this source are {}",
                obstacle.predicate()
            ),
            several => {
                write!(
                    f,
                    "none of the {total} runners of this source can take the job: "
                )?;
                for (index, (obstacle, count)) in several.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{count} {}", obstacle.predicate())?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for NoCandidate {}

/// Chooses, uniformly, among the sessions that can take the job.
///
/// # Errors
///
/// When none can, with what keeps each runner from it.
pub fn choose(
    needs: &JobNeeds<'_>,
    candidates: &[Candidate<'_>],
    rng: &mut impl Rng,
) -> Result<SessionId, NoCandidate> {
    let load = Load::of(candidates);
    let mut chosen = None;
    let mut seen = 0u32;
    let mut obstacles = HashMap::new();
    for candidate in candidates {
        match fit_sessions(needs, candidate, &load) {
            // Reservoir sampling: the n-th that fits replaces the chosen one with probability 1/n.
            Ok(sessions) => {
                for session in sessions {
                    seen += 1;
                    if rng.random_range(0..seen) == 0 {
                        chosen = Some(session);
                    }
                }
            }
            Err(obstacle) => *obstacles.entry(obstacle).or_insert(0) += 1,
        }
    }
    chosen.ok_or_else(|| NoCandidate::new(needs, &obstacles))
}

/// How many such jobs could be taken at this moment, all sessions together; a process counts once, however
/// many sessions it has.
///
/// # Errors
///
/// When not one could, with what keeps each runner from it.
pub fn room(needs: &JobNeeds<'_>, candidates: &[Candidate<'_>]) -> Result<u32, NoCandidate> {
    let load = Load::of(candidates);
    let (mut room, mut counted, mut obstacles) = (0u32, HashSet::new(), HashMap::new());
    for candidate in candidates {
        match fit_sessions(needs, candidate, &load) {
            Ok(fit) => {
                let fit = candidate
                    .sessions
                    .iter()
                    .filter(|s| fit.contains(&s.session));
                for session in fit {
                    if session
                        .instance
                        .is_none_or(|instance| counted.insert(instance))
                    {
                        let left = session.capacity.saturating_sub(load.active(session));
                        room = room.saturating_add(left);
                    }
                }
            }
            Err(obstacle) => *obstacles.entry(obstacle).or_insert(0) += 1,
        }
    }
    if room > 0 {
        Ok(room)
    } else {
        Err(NoCandidate::new(needs, &obstacles))
    }
}

/// The sessions of a runner that can take the job, at least one, or what is in the way.
fn fit_sessions(
    needs: &JobNeeds<'_>,
    candidate: &Candidate<'_>,
    load: &Load,
) -> Result<Vec<SessionId>, Obstacle> {
    if candidate.drained {
        return Err(Obstacle::Drained);
    }
    let mut fit = Vec::new();
    let mut closest = match (candidate.moving, candidate.ever_seen) {
        (true, _) => Obstacle::Draining,
        (false, true) => Obstacle::Offline,
        (false, false) => Obstacle::NeverConnected,
    };
    for session in &candidate.sessions {
        match obstacle(needs, session, load) {
            None => fit.push(session.session),
            Some(obstacle) => closest = closest.min(obstacle),
        }
    }
    if fit.is_empty() {
        Err(closest)
    } else {
        Ok(fit)
    }
}

fn obstacle(needs: &JobNeeds<'_>, session: &CandidateSession<'_>, load: &Load) -> Option<Obstacle> {
    let bridge = short(needs.bridge);
    if !session.healthy {
        Some(Obstacle::Offline)
    } else if !session.reachable {
        Some(Obstacle::Unreachable)
    } else if session.draining {
        Some(Obstacle::Draining)
    } else if !session.bridges.iter().any(|held| short(held) == bridge) {
        Some(Obstacle::LacksBridge)
    } else if load.active(session) >= session.capacity || needs.declined.contains(&session.session)
    {
        Some(Obstacle::Busy)
    } else {
        None
    }
}

fn short(bridge: &str) -> &str {
    bridge.strip_prefix(PACKAGE).unwrap_or(bridge)
}

/// How many jobs each process works on: capacity is the process's, not the session's.
struct Load(HashMap<InstanceId, u32>);

impl Load {
    fn of(candidates: &[Candidate<'_>]) -> Self {
        let mut load = HashMap::new();
        for session in candidates.iter().flat_map(|candidate| &candidate.sessions) {
            if let Some(instance) = session.instance {
                *load.entry(instance).or_insert(0) += session.active;
            }
        }
        Self(load)
    }

    fn active(&self, session: &CandidateSession<'_>) -> u32 {
        session
            .instance
            .and_then(|instance| self.0.get(&instance).copied())
            .unwrap_or(session.active)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    fn bridges() -> &'static [String] {
        static BRIDGES: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
        BRIDGES.get_or_init(|| vec!["@semilayer/bridge-postgres".to_owned()])
    }

    fn session() -> CandidateSession<'static> {
        CandidateSession {
            session: SessionId::new(),
            instance: None,
            healthy: true,
            draining: false,
            reachable: true,
            bridges: bridges(),
            active: 0,
            capacity: 2,
        }
    }

    fn runner(sessions: Vec<CandidateSession<'_>>) -> Candidate<'_> {
        Candidate {
            runner: RunnerId::new(),
            ever_seen: true,
            drained: false,
            moving: false,
            sessions,
        }
    }

    fn pick(candidates: &[Candidate<'_>]) -> Result<SessionId, NoCandidate> {
        pick_declined(candidates, &[])
    }

    fn pick_declined(
        candidates: &[Candidate<'_>],
        declined: &[SessionId],
    ) -> Result<SessionId, NoCandidate> {
        choose(
            &JobNeeds {
                bridge: "postgres",
                declined,
            },
            candidates,
            &mut SmallRng::seed_from_u64(1),
        )
    }

    #[test]
    fn room_is_what_processes_have_left_and_a_process_counts_once() {
        let of = |candidates: &[Candidate<'_>]| {
            let needs = JobNeeds {
                bridge: "postgres",
                declined: &[],
            };
            room(&needs, candidates)
        };
        let working = CandidateSession {
            active: 1,
            ..session()
        };
        let full = CandidateSession {
            active: 2,
            ..session()
        };
        let away = CandidateSession {
            healthy: false,
            ..session()
        };
        let moving = |active| CandidateSession {
            instance: Some(InstanceId::from_uuid(uuid::Uuid::nil())),
            active,
            capacity: 8,
            ..session()
        };
        assert_eq!(of(&[runner(vec![session(), working.clone()])]), Ok(3));
        assert_eq!(
            of(&[
                runner(vec![working, full.clone()]),
                runner(vec![away.clone()])
            ]),
            Ok(1)
        );
        assert_eq!(of(&[runner(vec![moving(1), moving(2)])]), Ok(5));
        assert!(
            of(&[runner(vec![full]), runner(vec![away])])
                .unwrap_err()
                .is_busy()
        );
        assert_eq!(
            of(&[]).unwrap_err().to_string(),
            "no runner is assigned to this source"
        );
    }

    #[test]
    fn each_obstacle_keeps_a_runner_from_the_job_and_is_named() {
        let unhealthy = CandidateSession {
            healthy: false,
            ..session()
        };
        let draining = CandidateSession {
            draining: true,
            ..session()
        };
        let unreachable = CandidateSession {
            reachable: false,
            ..session()
        };
        let mysql = vec!["mysql".to_owned()];
        let other_bridge = CandidateSession {
            bridges: &mysql,
            ..session()
        };
        let full = CandidateSession {
            active: 2,
            ..session()
        };
        let drained = Candidate {
            drained: true,
            ..runner(vec![session()])
        };
        let new = Candidate {
            ever_seen: false,
            ..runner(vec![])
        };
        for (candidates, code, text) in [
            (
                vec![],
                "no_runners_online",
                "no runner is assigned to this source",
            ),
            (
                vec![runner(vec![])],
                "no_runners_online",
                "the runner of this source is offline",
            ),
            (
                vec![runner(vec![unhealthy.clone()])],
                "no_runners_online",
                "the runner of this source is offline",
            ),
            (
                vec![new.clone()],
                "no_runners_online",
                "the runner of this source has never connected",
            ),
            (
                vec![new.clone(), new.clone()],
                "no_runners_online",
                "none of the 2 runners of this source has ever connected",
            ),
            (
                vec![drained.clone()],
                "no_runners_online",
                "the runner of this source is drained",
            ),
            (
                vec![runner(vec![draining])],
                "no_runners_online",
                "the runner of this source is shutting down",
            ),
            (
                vec![runner(vec![unreachable])],
                "no_runners_online",
                "the runner of this source is behind a gateway that cannot be reached",
            ),
            (
                vec![runner(vec![other_bridge])],
                "no_runners_online",
                "the runner that is assigned to this source lacks the bridge `postgres`",
            ),
            (
                vec![runner(vec![full.clone()])],
                "runners_busy",
                "the runner of this source is busy",
            ),
            (
                vec![runner(vec![full.clone()]), runner(vec![full.clone()])],
                "runners_busy",
                "all 2 runners of this source are busy",
            ),
            (
                vec![
                    runner(vec![]),
                    drained,
                    runner(vec![full, unhealthy]),
                    runner(vec![]),
                ],
                "runners_busy",
                "none of the 4 runners of this source can take the job: 1 busy, 1 drained, 2 offline",
            ),
        ] {
            let error = pick(&candidates).unwrap_err();
            assert_eq!((error.code(), error.to_string().as_str()), (code, text));
        }
    }

    #[test]
    fn a_runner_that_went_in_good_order_may_be_back_and_one_that_is_offline_may_not() {
        let draining = CandidateSession {
            draining: true,
            ..session()
        };
        let left = Candidate {
            moving: true,
            ..runner(vec![])
        };
        let drained = Candidate {
            drained: true,
            moving: true,
            ..runner(vec![])
        };
        for (candidates, moving) in [
            (vec![runner(vec![draining.clone()])], true),
            (vec![left], true),
            (vec![runner(vec![]), runner(vec![draining])], true),
            (vec![runner(vec![])], false),
            (vec![drained], false),
        ] {
            assert_eq!(pick(&candidates).unwrap_err().is_moving(), moving);
        }
    }

    #[test]
    fn whoever_declined_is_not_asked_again() {
        let (a, b) = (session(), session());
        let candidates = [runner(vec![a.clone()]), runner(vec![b.clone()])];
        assert_eq!(pick_declined(&candidates, &[a.session]), Ok(b.session));
        let error = pick_declined(&candidates, &[a.session, b.session]).unwrap_err();
        assert!(error.is_busy());
    }

    #[test]
    fn capacity_is_shared_by_the_sessions_of_one_process() {
        let instance = Some(InstanceId::new());
        let old = CandidateSession {
            instance,
            draining: true,
            active: 2,
            ..session()
        };
        let new = CandidateSession {
            instance,
            active: 0,
            ..session()
        };
        assert!(
            pick(&[runner(vec![old, new.clone()])])
                .unwrap_err()
                .is_busy()
        );
        let replica = CandidateSession {
            instance: Some(InstanceId::new()),
            ..session()
        };
        assert_eq!(pick(&[runner(vec![new.clone()])]), Ok(new.session));
        assert_eq!(pick(&[runner(vec![replica.clone()])]), Ok(replica.session));
    }

    #[test]
    fn bridges_are_compared_by_short_name() {
        let short_name = vec!["postgres".to_owned()];
        let session = CandidateSession {
            bridges: &short_name,
            ..session()
        };
        let needs = JobNeeds {
            bridge: "@semilayer/bridge-postgres",
            declined: &[],
        };
        let candidates = [runner(vec![session.clone()])];
        assert_eq!(
            choose(&needs, &candidates, &mut SmallRng::seed_from_u64(1)),
            Ok(session.session)
        );
    }

    #[test]
    fn the_choice_is_uniform_over_sessions() {
        // Three runners with 1, 2 and 3 sessions: 60,000 draws over 6 sessions.
        let candidates: Vec<_> = (1..4)
            .map(|n| runner((0..n).map(|_| session()).collect()))
            .collect();
        let needs = JobNeeds {
            bridge: "postgres",
            declined: &[],
        };
        let mut rng = SmallRng::seed_from_u64(7);
        let mut drawn: HashMap<SessionId, f64> = HashMap::new();
        for _ in 0..60_000 {
            *drawn
                .entry(choose(&needs, &candidates, &mut rng).unwrap())
                .or_default() += 1.0;
        }
        assert_eq!(drawn.len(), 6);
        let chi_square: f64 = drawn
            .values()
            .map(|n| (n - 10_000.0).powi(2) / 10_000.0)
            .sum();
        assert!(
            chi_square < 20.5,
            "5 degrees of freedom, p = 0.001: {chi_square}"
        );
    }

    proptest! {
        #[test]
        fn the_chosen_session_can_always_take_the_job(
            shape in prop::collection::vec(
                (any::<bool>(), prop::collection::vec((any::<bool>(), any::<bool>(), 0..4u32, any::<bool>()), 0..4)),
                0..5,
            ),
            seed in any::<u64>(),
        ) {
            let mut declined = Vec::new();
            let candidates: Vec<_> = shape
                .into_iter()
                .map(|(drained, sessions)| {
                    let sessions = sessions.into_iter().map(|(healthy, draining, active, declines)| {
                        let session = CandidateSession { healthy, draining, active, ..session() };
                        if declines {
                            declined.push(session.session);
                        }
                        session
                    });
                    Candidate { drained, ..runner(sessions.collect()) }
                })
                .collect();
            let fit: Vec<SessionId> = candidates
                .iter()
                .filter(|candidate| !candidate.drained)
                .flat_map(|candidate| &candidate.sessions)
                .filter(|s| s.healthy && !s.draining && s.active < 2 && !declined.contains(&s.session))
                .map(|s| s.session)
                .collect();
            let needs = JobNeeds { bridge: "postgres", declined: &declined };
            match choose(&needs, &candidates, &mut SmallRng::seed_from_u64(seed)) {
                Ok(session) => prop_assert!(fit.contains(&session)),
                Err(_) => prop_assert!(fit.is_empty()),
            }
        }
    }
}
