//! Figures as ratios, A and B interleaved in one run. `tests/bench/run` runs all of it in a lab.
//!
//! usage: `bus [--quick]` | `echo` (an agent) | `compare INSIDE BARE [--quick]` | `stamp` (an agent) |
//! `packets [--quick]` | `files FOLDER UID [--quick]`

mod echo;
mod files;
mod packets;
mod raw;
mod server;
mod stamp;
mod stats;
mod tasks;

use std::path::Path;

use stats::Comparison;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words == ["stamp"] {
        // Before any runtime: the time is that of a small program.
        stamp::run();
    }
    tokio::runtime::Runtime::new().expect("a runtime").block_on(run(&words));
}

async fn run(words: &[String]) {
    let quick = words.iter().any(|word| word == "--quick");
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["echo"] => echo::answer().await,
        ["compare", inside, bare, ..] => {
            show(&echo::compare(inside, bare, if quick { 20 } else { 100 }).await);
        }
        ["bus", ..] => bus(quick).await,
        ["packets", ..] => show(&packets::compare(if quick { 6 } else { 40 }).await),
        ["files", folder, uid, ..] => {
            let uid = uid.parse().expect("a user id");
            show(&files::compare(Path::new(folder), uid, if quick { 6 } else { 40 }));
        }
        _ => {
            eprintln!("which figures? see the head of figures.rs");
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
