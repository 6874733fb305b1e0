//! The table at the end of a run.

use super::Profile;
use super::events::Chaos;
use super::invariants::Found;
use crate::support::cluster::load::Ledger;

pub(crate) fn print(profile: &Profile, chaos: &Chaos, ledger: &Ledger, found: &Found) {
    println!("\n| what was done to it, in {:?} | times |", profile.length);
    println!("|---|---:|");
    for (what, times) in chaos.done.counts() {
        println!("| {what} | {times} |");
    }
    println!("\n| what callers saw | times |");
    println!("|---|---:|");
    let outcomes = ledger.outcomes.counts();
    for (what, times) in &outcomes {
        println!("| {what} | {times} |");
    }
    println!("| **all requests** | {} |", outcomes.values().sum::<u64>());
    println!("\n| jobs | |");
    println!("|---|---:|");
    for (what, times) in &found.jobs {
        println!("| {what} | {times} |");
    }
    println!("\n| | |");
    println!("|---|---:|");
    for (what, times) in &found.facts {
        println!("| {what} | {times} |");
    }
    let wrong = ledger.wrong.lock().unwrap().len();
    println!("\nviolations: {wrong}; seed {}", profile.seed);
}
