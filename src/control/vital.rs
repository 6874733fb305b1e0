//! [`Vital`]: the guard that turns the silent death of a core actor into the end of the process.
//!
//! A panicking actix actor stops without a word, supervised or not, and every message to it fails from
//! then on. Each core actor owns a guard; when it is dropped outside an orderly shutdown, the process
//! ends with a non-zero code, its supervisor restarts it, and state is rebuilt from the store.

use std::sync::Arc;

use actix::System;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// How far a process is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is not.
    Running,
    /// It takes nothing new and lets what runs finish.
    Draining,
    /// It closes what is left.
    Closing,
}

/// Says how far the process is on its way out; clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<watch::Sender<Stage>>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Stage::Running)))
    }
}

impl Shutdown {
    /// Goes one stage on.
    pub fn advance(&self, stage: Stage) {
        self.0.send_replace(stage);
    }

    /// Whether the process is on its way out; from then on a core actor may stop.
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() != Stage::Running
    }

    /// The stage now, and every later one.
    pub fn stages(&self) -> WatchStream<Stage> {
        WatchStream::new(self.0.subscribe())
    }
}

/// The exit code of a process whose core actor died.
pub const CORE_ACTOR_DIED: i32 = 70;

/// Ends the process when the actor that owns it dies.
#[derive(Debug)]
pub struct Vital {
    name: &'static str,
    shutdown: Shutdown,
    system: System,
}

impl Vital {
    /// Guards the actor of that name; to be called on a thread of the running system.
    pub fn new(name: &'static str, shutdown: &Shutdown) -> Self {
        Self {
            name,
            shutdown: shutdown.clone(),
            system: System::current(),
        }
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.shutdown.has_begun() {
            log::error!(actor = self.name; "{} died, the process ends so that it is started afresh", self.name);
            self.system.stop_with_code(CORE_ACTOR_DIED);
        }
    }
}

#[cfg(test)]
mod tests {
    use actix::prelude::*;

    use super::*;

    struct Core {
        _vital: Vital,
    }

    impl Actor for Core {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Do(fn(&mut Context<Core>));

    impl Handler<Do> for Core {
        type Result = ();

        fn handle(&mut self, Do(what): Do, ctx: &mut Self::Context) {
            what(ctx);
        }
    }

    /// The exit code of a system in which a core actor is told to do something.
    fn exit_code(shutdown: Shutdown, what: fn(&mut Context<Core>)) -> i32 {
        let system = System::new();
        system.block_on(async {
            let core = Core {
                _vital: Vital::new("Core", &shutdown),
            }
            .start();
            core.do_send(Do(what));
            actix::spawn(async {
                tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                System::current().stop_with_code(0);
            });
        });
        system.run_with_code().expect("the system runs")
    }

    #[test]
    fn a_core_actor_that_panics_ends_the_process_with_a_code() {
        assert_eq!(
            exit_code(Shutdown::default(), |_| panic!("a bug")),
            CORE_ACTOR_DIED
        );
    }

    #[test]
    fn a_core_actor_that_stops_ends_the_process_too() {
        assert_eq!(
            exit_code(Shutdown::default(), |ctx| ctx.stop()),
            CORE_ACTOR_DIED
        );
    }

    #[test]
    fn during_a_shutdown_core_actors_may_stop() {
        let shutdown = Shutdown::default();
        shutdown.advance(Stage::Draining);
        let stopped = |ctx: &mut Context<Core>| {
            ctx.stop();
            System::current().stop_with_code(0);
        };
        assert_eq!(exit_code(shutdown, stopped), 0);
    }
}
