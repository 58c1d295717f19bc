//! What comes from outside and is read by programs with rights, damaged a byte here and a line there.
//!
//! The inputs grow from real ones, by a fixed seed, so that a failure comes again. `FLOCK_FUZZ_CASES`
//! sets the number for each target, `FLOCK_FUZZ_SEED` another beginning. The egress table's
//! read-back has its own beside its reader, in `src/host/egress/listing.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flock::agent::protocol;
use flock::bus::ask::Question;
use flock::bus::message::{self, Event, Heartbeat, Task, TaskResult};
use flock::bus::speak::Said;
use flock::config;
use flock::control::request::Request;
use flock::plan::{Plan, Value, plan};
use flock::probe::wire::{Finding, Order};
use flock::text::printable;

/// Numbers without a library (xorshift), so that a seed means the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (below.max(1) as u64)).unwrap()
    }
}

/// What parsers stumble over.
const TOKENS: [&[u8]; 36] = [
    b"\0",
    b"\n",
    b"\r\n",
    b"\"",
    b"'",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"=",
    b"#",
    b"%i",
    b"$HOME",
    b"${X}",
    b"../",
    b"/",
    b"\x1b[2J",
    b"\xff\xfe",
    b"\xe2\x80\xae",
    b"\xed\xa0\x80",
    b"-1",
    b"1e400",
    b"18446744073709551616",
    b"NaN",
    b"null",
    b"true",
    b"\"\"\"",
    b"[[",
    b"\\u0000",
    b"[Service]\nUser=root\n",
    b"agents.",
    b"\xf0\x9f\x90\x91",
    b"\t",
];

/// One input, some steps away from one or two real ones.
fn damaged(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = corpus[dice.roll(corpus.len())].clone();
    for _ in 0..=dice.roll(6) {
        let at = dice.roll(bytes.len() + 1);
        let length = dice.roll(12).min(bytes.len() - at);
        match dice.roll(7) {
            0 => drop(bytes.splice(at..at, TOKENS[dice.roll(TOKENS.len())].iter().copied())),
            1 => drop(bytes.drain(at..at + length)),
            2 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
            3 => {
                let part = bytes[at..at + length].to_vec();
                for _ in 0..dice.roll(40) {
                    drop(bytes.splice(at..at, part.iter().copied()));
                }
            }
            4 => {
                let other = &corpus[dice.roll(corpus.len())];
                let from = dice.roll(other.len() + 1);
                let to = from + dice.roll(200).min(other.len() - from);
                drop(bytes.splice(at..at, other[from..to].iter().copied()));
            }
            5 => bytes.truncate(at),
            _ => {
                let token = TOKENS[dice.roll(TOKENS.len())];
                drop(bytes.splice(at..at + length, token.iter().copied()));
            }
        }
        bytes.truncate(1 << 16);
    }
    bytes
}

/// Tries the corpus as it is and then its damaged offspring; no input may take long.
fn run(corpus: &[Vec<u8>], mut target: impl FnMut(&[u8])) {
    let number = |name: &str, usual| {
        std::env::var(name).map_or(usual, |text| text.parse::<u64>().expect("a number"))
    };
    let mut dice = Dice(number("FLOCK_FUZZ_SEED", 0x5eed_f10c) | 1);
    assert!(corpus.len() > 2, "the corpus is empty");
    let offspring = (0..number("FLOCK_FUZZ_CASES", 3000)).map(|_| damaged(corpus, &mut dice));
    for input in corpus.iter().cloned().chain(offspring) {
        let shown = String::from_utf8_lossy(&input).into_owned();
        let began = Instant::now();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&input)));
        assert!(done.is_ok(), "the input was:\n{shown:?}");
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "it took {:?}: {shown:?}",
            began.elapsed()
        );
    }
}

fn files(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let is = |path: &&PathBuf| path.extension().is_some_and(|end| end == "toml");
    paths.iter().filter(is).map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn a_damaged_configuration_is_refused_or_gives_units_of_plain_text() {
    let mut corpus = files("tests/config/good");
    corpus.extend(files("tests/config/bad"));
    corpus.extend(files("packaging"));
    corpus.extend(files("docs/examples"));
    let mut passed = 0;
    run(&corpus, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        match config::parse(&[("flock.toml".into(), text.to_owned())]) {
            Ok(config) => {
                let uids: BTreeMap<_, _> = config.agents.keys().cloned().zip(65_537..).collect();
                for id in config.agents.keys() {
                    plain(&plan(&config, &uids, id).expect("an agent has a plan"));
                }
                passed += 1;
            }
            // What is quoted in a message may not steer a terminal.
            Err(faults) => {
                let said = faults.to_string();
                assert!(
                    !said.is_empty() && said.lines().all(|line| printable(line) == line),
                    "{said:?}"
                );
            }
        }
    });
    assert!(passed > 50, "only {passed} passed: the rest of the test is idle");
}

/// systemd writes properties down as lines: a newline in one would be a line of its own (`User=root`).
fn plain(plan: &Plan) {
    for property in &plan.unit.properties {
        for text in texts(&property.value) {
            assert!(!text.chars().any(char::is_control), "{}: {text:?}", property.name);
        }
    }
    let own: Vec<_> = plan.unit.properties.iter().filter(|p| p.name == "User").collect();
    assert!(matches!(own[..], [one] if one.value != Value::Str("root".into())), "{own:?}");
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Str(text) => vec![text.clone()],
        Value::Strs(list) | Value::List(_, list) => list.clone(),
        Value::Binds(binds) => binds.iter().flat_map(|b| [b.0.clone(), b.1.clone()]).collect(),
        Value::Pairs(pairs) => pairs.iter().flat_map(|p| [p.0.clone(), p.1.clone()]).collect(),
        Value::Exec(list) => list
            .iter()
            .flat_map(|(path, argv, _)| [vec![path.clone()], argv.clone()].concat())
            .collect(),
        Value::Command(list) => list
            .iter()
            .flat_map(|(path, argv, _)| [vec![path.clone()], argv.clone()].concat())
            .collect(),
        Value::Files(list) => list.iter().map(|file| file.0.clone()).collect(),
        Value::Fields(list) => list.clone(),
        _ => Vec::new(),
    }
}

#[test]
fn a_damaged_request_is_refused_or_means_what_it_says() {
    let corpus: Vec<Vec<u8>> = [
        r#"{"verb":"status"}"#,
        r#"{"verb":"asks","follow":true}"#,
        r#"{"verb":"ask-decide","ask":"ab12","approve":true,"reason":null}"#,
        r#"{"verb":"task-send","to":"agent-1","text":"do it","deadline_seconds":60,"wait_seconds":3}"#,
        r#"{"verb":"task-show","task":"0197"}"#,
        r#"{"verb":"audit-verify"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    run(&corpus, |input| {
        let Ok(request) = serde_json::from_slice::<Request>(input) else { return };
        let again = serde_json::to_vec(&request).unwrap();
        assert_eq!(serde_json::from_slice::<Request>(&again).unwrap(), request);
        assert!(!request.verb().is_empty());
    });
    assert!(corpus.iter().all(|one| serde_json::from_slice::<Request>(one).is_ok()));
}

#[test]
fn a_damaged_message_of_the_bus_is_refused_or_survives_the_way() {
    let corpus: Vec<Vec<u8>> = [
        r#"{"id":"0197a","to":"agent-1","text":"do it","created":"2026-01-01T00:00:00Z"}"#,
        r#"{"id":"x.1","to":"all","text":"do","created":"2026-01-01T00:00:00Z","deadline":"2026-01-01T01:00:00Z"}"#,
        r#"{"id":"0197a","agent":"agent-1","status":"done","output":"text","attempt":1}"#,
        r#"{"id":"0197a","agent":"agent-1","status":"failed","output":{"a":[1,2]},"reason":"why"}"#,
        r#"{"agent":"agent-1","version":"1","running":["0197a"]}"#,
        r#"{"event":"started","task":"0197a","detail":"x"}"#,
        r#"{"id":"0197a","output":"an answer","status":"done","reason":null}"#,
        r#"{"tool":"git","arguments":["push","origin","main"],"task":"0197a","reason":"ask"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    run(&corpus, |input| {
        if let Ok(task) = message::parse::<Task>(input) {
            // The id becomes the name of a file and a word in a subject.
            let id = task.id.as_str();
            assert!(!id.is_empty() && !id.contains(['/', '\0', '\n', ' ', '*', '>']), "{id:?}");
            assert!(id != "." && id != "..", "{id:?}");
            if let Ok(bytes) = message::encode(&task) {
                assert_eq!(message::parse::<Task>(&bytes).unwrap(), task);
            }
        }
        let _ = message::parse::<TaskResult>(input);
        let _ = message::parse::<Heartbeat>(input);
        let _ = message::parse::<Event>(input);
        let _ = message::parse::<Question>(input);
        let _ = message::parse::<Said>(input);
        let _ = message::salvage_id(input);
        for whole in [true, false] {
            let _ = protocol::read(input, whole, 1000);
        }
        let shown = printable(&String::from_utf8_lossy(input));
        assert!(!shown.chars().any(char::is_control));
    });
}

#[test]
fn a_damaged_order_or_report_of_the_probe_is_refused_or_survives_the_way() {
    let corpus: Vec<Vec<u8>> = [
        r#"{"attempts":[{"check":"c","target":"t","act":{"read":"/etc/shadow"}}]}"#,
        r#"{"attempts":[{"check":"c","target":"t","act":{"append":{"path":"/x","mark":"m"}}}]}"#,
        r#"{"attempts":[{"check":"c","target":"t","act":{"signal":{"pid":1,"signal":0}}}]}"#,
        r#"{"check":"c","target":"t","outcome":"refused","errno":13,"evidence":"EACCES","micros":7}"#,
        r#"{"check":"c","target":"t","outcome":"done","errno":0,"evidence":"","micros":1,"list":["/tmp"]}"#,
        r#"{"check":"c","target":"t","outcome":"nothing-there","errno":2,"evidence":"x","micros":0}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    let mut read = 0;
    run(&corpus, |input| {
        if let Ok(order) = serde_json::from_slice::<Order>(input) {
            let again = serde_json::to_vec(&order).unwrap();
            assert_eq!(serde_json::from_slice::<Order>(&again).unwrap(), order);
            read += 1;
        }
        if let Ok(finding) = serde_json::from_slice::<Finding>(input) {
            let again = serde_json::to_vec(&finding).unwrap();
            assert_eq!(serde_json::from_slice::<Finding>(&again).unwrap(), finding);
            read += 1;
        }
    });
    assert!(read >= corpus.len(), "only {read} were read");
}
