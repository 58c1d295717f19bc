//! The message bus, spoken by hand: what the server refuses is said by the server, not by a library.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::finding;
use super::wire::{Act, Attempt, Ended, Finding};

/// So long an answer of the server is waited for.
const ANSWER: Duration = Duration::from_secs(3);
/// So long one listens for what is said several times in this time.
const LISTEN: Duration = Duration::from_millis(500);
/// No line of the protocol is longer.
const LINE_MAX: u64 = 8192;
/// No message is larger.
const MESSAGE_MAX: usize = 8 << 20;

/// Whether the attempt is the bus's.
pub(super) fn is(act: &Act) -> bool {
    matches!(act, Act::Publish { .. } | Act::Subscribe(_) | Act::Hear { .. })
}

/// All attempts at the bus, over one connection with the identity in the environment.
pub(super) async fn all(attempts: &[Attempt]) -> Vec<Finding> {
    let wanted: Vec<&Attempt> = attempts.iter().filter(|a| is(&a.act)).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let environment: HashMap<String, String> = std::env::vars().collect();
    let mut connection = match timeout(ANSWER, Connection::open(&environment)).await {
        Ok(connection) => connection.map_err(|error| error.to_string()),
        Err(_) => Err("the server does not answer".to_owned()),
    };
    let (hears, wanted): (Vec<&Attempt>, Vec<&Attempt>) =
        wanted.into_iter().partition(|a| matches!(a.act, Act::Hear { .. }));
    let mut findings = hear(&mut connection, &hears).await;
    for attempt in wanted {
        let began = Instant::now();
        let ended = match &mut connection {
            Err(why) => Ended::error(format!("connect to the bus: {why}")),
            Ok(open) => match timeout(ANSWER, open.carry_out(&attempt.act)).await {
                Ok(Ok(ended)) => ended,
                Ok(Err(error)) => Ended::error(format!("the bus: {error}")),
                Err(_) => Ended::error("the bus did not answer"),
            },
        };
        findings.push(finding(attempt, ended, began));
    }
    findings
}

/// All that is listened for, in one listening.
async fn hear(connection: &mut Result<Connection, String>, attempts: &[&Attempt]) -> Vec<Finding> {
    let began = Instant::now();
    let end = |attempt: &&Attempt, ended| finding(attempt, ended, began);
    let all = |why: &str| {
        attempts.iter().map(|a| end(a, Ended::error(format!("the bus: {why}")))).collect()
    };
    let heard = match connection {
        Err(why) => return all(&format!("connect: {why}")),
        Ok(open) => timeout(ANSWER, open.hear(attempts)).await,
    };
    match heard {
        Ok(Ok(ended)) => attempts.iter().zip(ended).map(|(a, ended)| end(a, ended)).collect(),
        Ok(Err(error)) => all(&error.to_string()),
        Err(_) => all("it did not answer"),
    }
}

struct Connection {
    stream: BufReader<TcpStream>,
    subscriptions: u64,
}

/// What came before the server's PONG, or within a time.
#[derive(Default)]
struct Heard {
    error: Option<String>,
    messages: Vec<(u64, Vec<u8>)>,
}

impl Connection {
    async fn open(environment: &HashMap<String, String>) -> io::Result<Self> {
        let of = |name: &str| {
            environment.get(name).ok_or_else(|| io::Error::other(format!("{name} is not set")))
        };
        let (url, user, password) = (of("NATS_URL")?, of("NATS_USER")?, of("NATS_PASSWORD")?);
        let address = url.rsplit("//").next().unwrap_or_default();
        let mut stream = BufReader::new(TcpStream::connect(address).await?);
        line(&mut stream).await?;
        let options = serde_json::json!({
            "verbose": false, "pedantic": false, "echo": true, "headers": true, "protocol": 1,
            "lang": "rust", "version": "0", "name": "flock-probe", "user": user, "pass": password,
        });
        stream.write_all(format!("CONNECT {options}\r\n").as_bytes()).await?;
        let mut open = Self { stream, subscriptions: 0 };
        match open.ask("").await?.error {
            Some(error) => Err(io::Error::other(error)),
            None => Ok(open),
        }
    }

    async fn carry_out(&mut self, act: &Act) -> io::Result<Ended> {
        match act {
            Act::Publish { subject, mark } => {
                let said = format!("PUB {subject} {}\r\n{mark}\r\n", mark.len());
                Ok(ended(self.ask(&said).await?, "the server took it"))
            }
            Act::Subscribe(subject) => {
                let sid = self.next();
                let heard = self.ask(&format!("SUB {subject} {sid}\r\n")).await?;
                self.ask(&format!("UNSUB {sid}\r\n")).await?;
                Ok(ended(heard, "the server took the subscription"))
            }
            _ => Ok(Ended::error("not of the bus")),
        }
    }

    fn next(&mut self) -> u64 {
        self.subscriptions += 1;
        self.subscriptions
    }

    /// A subscription to what looks like everybody's may be to one's own alone: what counts is
    /// whether what is said elsewhere is heard.
    async fn hear(&mut self, attempts: &[&Attempt]) -> io::Result<Vec<Ended>> {
        let mut asked = Vec::new();
        let mut heard = Heard::default();
        for attempt in attempts {
            let Act::Hear { subject, canary } = &attempt.act else { continue };
            let sid = self.next();
            let now = self.ask(&format!("SUB {subject} {sid}\r\n")).await?;
            heard.messages.extend(now.messages);
            asked.push((sid, canary.as_bytes(), now.error));
        }
        let end = Instant::now() + LISTEN;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match timeout(left, self.one(&mut heard)).await {
                Err(_) => break,
                Ok(result) => drop(result?),
            }
        }
        let mut all = Vec::new();
        for (sid, canary, error) in asked {
            self.ask(&format!("UNSUB {sid}\r\n")).await?;
            let own: Vec<_> = heard.messages.iter().filter(|(of, _)| *of == sid).collect();
            let others = |(_, message): &&(u64, Vec<u8>)| {
                message.windows(canary.len()).any(|part| part == canary)
            };
            all.push(match error {
                Some(error) => Ended::refused(error),
                None if own.iter().any(others) => Ended::done("what others say was heard"),
                None => Ended::refused(format!("heard {} messages of its own", own.len())),
            });
        }
        Ok(all)
    }

    /// Says something and waits until the server has dealt with it.
    async fn ask(&mut self, said: &str) -> io::Result<Heard> {
        self.stream.write_all(format!("{said}PING\r\n").as_bytes()).await?;
        let mut heard = Heard::default();
        while !self.one(&mut heard).await? {}
        Ok(heard)
    }

    /// Reads one thing that the server says; `true` for its PONG.
    async fn one(&mut self, heard: &mut Heard) -> io::Result<bool> {
        let said = line(&mut self.stream).await?;
        let (word, rest) = said.split_once(' ').unwrap_or((&said, ""));
        match word.to_ascii_uppercase().as_str() {
            "PONG" => return Ok(true),
            "PING" => self.stream.write_all(b"PONG\r\n").await?,
            "-ERR" => heard.error = Some(rest.trim_matches('\'').to_owned()),
            "MSG" | "HMSG" => {
                // SUBJECT SID [REPLY] [HEADERS] LENGTH
                let sid = rest.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
                let length = rest.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok());
                let length =
                    length.filter(|n| *n <= MESSAGE_MAX).ok_or(io::ErrorKind::InvalidData)?;
                let mut message = vec![0u8; length + 2];
                self.stream.read_exact(&mut message).await?;
                heard.messages.push((sid, message));
            }
            _ => {}
        }
        Ok(false)
    }
}

fn ended(heard: Heard, done: &str) -> Ended {
    match heard.error {
        Some(error) => Ended::refused(error),
        None => Ended::done(done),
    }
}

async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    stream.take(LINE_MAX * 8).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
