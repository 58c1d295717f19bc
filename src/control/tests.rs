//! The control socket over a real Unix socket: who is answered, and what a bad peer can cost.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::control::peer::Refusal;
use crate::control::server::{Replies, Server, Service, bind};
use crate::control::{
    CONNECTIONS_PER_USER, Client, ClientError, ErrorCode, Peer, REQUEST_MAX, Request, Response,
};
use crate::journal::{Entry, Query};
use crate::names::AgentId;

/// Answers a followed log with one entry and then waits for ever; counts what still waits.
#[derive(Default)]
struct Fixed {
    refuses: bool,
    waiting: Arc<AtomicUsize>,
}

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Service for Fixed {
    async fn serve(&self, peer: &Peer, request: Request, replies: &mut Replies) -> Response {
        let Request::Logs(query) = request else {
            return Response::error(ErrorCode::Failed, format!("{} asked", peer.name));
        };
        let agent = AgentId::parse("a").unwrap();
        let entry = Entry::remark(&agent, jiff::Timestamp::UNIX_EPOCH, "hello\n\u{1b}");
        if replies.send(&Response::Log(entry)).await.is_err() || !query.follow {
            return Response::End;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(Arc::clone(&self.waiting));
        std::future::pending().await
    }

    async fn admit(&self, uid: u32) -> Result<Peer, Refusal> {
        match self.refuses {
            true => Err(Refusal::Agent(uid)),
            false => Ok(Peer { uid, name: "ann".into() }),
        }
    }
}

struct Bench {
    path: PathBuf,
    waiting: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

async fn bench() -> Bench {
    bench_of(Fixed::default()).await
}

async fn bench_of(service: Fixed) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let waiting = Arc::clone(&service.waiting);
    let server = Server::new(bind(&path).unwrap(), Arc::new(service));
    tokio::spawn(async move {
        loop {
            server.accept().await.unwrap();
        }
    });
    Bench { path, waiting, _dir: dir }
}

impl Bench {
    /// Sends raw bytes and reads all that comes back.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        // The other end may close before it has read all.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn settle(&self, count: usize) {
        for _ in 0..2000 {
            if self.waiting.load(Ordering::SeqCst) == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} requests wait instead of {count}", self.waiting.load(Ordering::SeqCst));
    }
}

fn logs(follow: bool) -> Request {
    let agent = AgentId::parse("a").unwrap();
    Request::Logs(Query { follow, ..Query::last(&agent, 1) })
}

#[tokio::test]
async fn nobody_else_can_open_the_socket() {
    let bench = bench().await;
    let mode = std::fs::metadata(&bench.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

#[tokio::test]
async fn an_agent_is_refused_before_it_is_read() {
    let bench = bench_of(Fixed { refuses: true, ..Fixed::default() }).await;
    for bytes in [&b""[..], b"{\"verb\":\"status\"}\n"] {
        let answer = bench.raw(bytes).await;
        assert!(answer.contains("\"refused\"") && answer.lines().count() == 1, "{answer}");
    }
    // The kernel's word on the peer, not the peer's own.
    let answer = bench.raw(b"{\"uid\":0}\n").await;
    assert!(answer.contains(&format!("uid {} ", nix::unistd::geteuid())), "{answer}");
}

#[tokio::test]
async fn an_answer_is_read_to_its_end() {
    let bench = bench().await;
    let mut client = Client::ask_at(&bench.path, &logs(false)).await.unwrap();
    let Some(Response::Log(entry)) = client.next().await.unwrap() else { panic!("no entry") };
    assert_eq!(entry.text, "hello\n\u{1b}");
    assert_eq!(client.next().await.unwrap(), None);
    let mut client = Client::ask_at(&bench.path, &Request::Status).await.unwrap();
    match client.next().await {
        Err(ClientError::Answer { code, message }) => {
            assert_eq!((code, message.as_str()), (ErrorCode::Failed, "ann asked"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bad_requests_get_an_error_and_the_end() {
    let bench = bench().await;
    let huge = vec![b'x'; REQUEST_MAX + 1];
    let deep = [b'['; 100_000];
    for bytes in [&b"\n"[..], b"{\"verb\":\"start\"}\n", b"\xff\xfe\x1b]0;x\x07\n", &huge, &deep] {
        let mut line = bytes.to_vec();
        line.push(b'\n');
        let answer = bench.raw(&line).await;
        assert!(answer.contains("\"bad-request\""), "{answer}");
        assert_eq!(answer.lines().count(), 1);
        assert!(answer.len() < 1000 && !answer.contains('\x1b'));
    }
}

#[tokio::test]
async fn a_peer_that_leaves_ends_its_long_request() {
    let bench = bench().await;
    let mut client = Client::ask_at(&bench.path, &logs(true)).await.unwrap();
    assert!(client.next().await.unwrap().is_some());
    bench.settle(1).await;
    drop(client);
    bench.settle(0).await;
}

#[tokio::test]
async fn one_user_cannot_take_all_connections() {
    let bench = bench().await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_PER_USER {
        held.push(Client::ask_at(&bench.path, &logs(true)).await.unwrap());
    }
    bench.settle(CONNECTIONS_PER_USER).await;
    let answer = bench.raw(b"{\"verb\":\"status\"}\n").await;
    assert!(answer.contains("\"busy\""), "{answer}");
    held.pop();
    bench.settle(CONNECTIONS_PER_USER - 1).await;
    let answer = bench.raw(b"{\"verb\":\"status\"}\n").await;
    assert!(answer.contains("ann asked"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dropped() {
    let answer = bench().await.raw(b"").await;
    assert!(answer.contains("no request within 5 s"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_no_misunderstanding() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    for (sent, is_cut) in
        [(&b"{\"kind\":\"e"[..], true), (b"", true), (b"{\"kind\":\"x\"}\n", false)]
    {
        let _ = std::fs::remove_file(&path);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let mut client = Client::ask_at(&path, &Request::Status).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        // A socket that is closed with something unread in it is reset, which is another ending.
        let mut asked = String::new();
        BufReader::new(&mut stream).read_line(&mut asked).await.unwrap();
        stream.write_all(sent).await.unwrap();
        drop(stream);
        match client.next().await {
            Err(ClientError::Broken(cause)) if is_cut => {
                assert_eq!(cause.kind(), std::io::ErrorKind::UnexpectedEof);
            }
            Err(ClientError::Garbled(_)) if !is_cut => {}
            other => panic!("{other:?}"),
        }
    }
}
