//! Figures as ratios, A and B interleaved in one run. `tests/bench/run` runs all of it in a lab.
//!
//! usage: `bus [--quick]` | `echo` (the agent) | `compare INSIDE BARE [--quick]`

mod echo;
mod raw;
mod server;
mod stats;
mod tasks;

use stats::Comparison;

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let quick = words.iter().any(|word| word == "--quick");
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["echo"] => echo::answer().await,
        ["compare", inside, bare, ..] => {
            show(&echo::compare(inside, bare, if quick { 20 } else { 100 }).await);
        }
        ["bus", ..] => bus(quick).await,
        _ => {
            eprintln!("usage: bus [--quick] | echo | compare INSIDE BARE [--quick]");
            std::process::exit(2);
        }
    }
}

async fn bus(quick: bool) {
    let (pairs, count) = if quick { (20, 100) } else { (60, 300) };
    for sync in ["always", "2m"] {
        show(&tasks::round_trip(sync, pairs).await);
        for agents in [1, 3, 10] {
            show(&[tasks::queue(sync, agents, count, pairs / 6).await]);
        }
    }
}

fn show(all: &[Comparison]) {
    for one in all {
        println!("{one}");
        println!("json {}", one.json());
    }
}
