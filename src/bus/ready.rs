//! Waits until the server listens. Its unit has started only then, so that what is ordered after it
//! (agents, flockd) finds it, and so does who sends a task right after a restart.

use std::fs;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::server_conf::{self, SERVER_FILE};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// One attempt takes no longer.
const ANSWER: Duration = Duration::from_secs(2);
/// What the server says first, see the protocol of NATS.
const GREETING: &[u8] = b"INFO ";

/// Why the server is not ready.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// Its configuration.
    #[error("wait for the bus: read {}: {cause}: flockctl apply", .file.display())]
    Configuration {
        /// The file.
        file: PathBuf,
        /// What was wrong.
        cause: io::Error,
    },
    /// It is gone.
    #[error("wait for the bus: the server has ended: journalctl -u flock-bus")]
    Ended,
    /// It does not listen.
    #[error("wait for the bus at {address}: {cause}: journalctl -u flock-bus")]
    Silent {
        /// Where it should.
        address: SocketAddr,
        /// What the last attempt found.
        cause: io::Error,
    },
}

/// Waits until the server that has its configuration in `dir` greets, at most this long, and as long
/// as its process lives.
///
/// # Errors
/// When it does not, has ended, or its configuration names no address.
pub fn wait(dir: &Path, process: Option<Pid>, limit: Duration) -> Result<(), ReadyError> {
    let file = dir.join(SERVER_FILE);
    let address = fs::read_to_string(&file).and_then(|text| {
        server_conf::address(&text)
            .ok_or_else(|| io::Error::other("it has no address to listen on"))
    });
    let address = match address {
        Ok(address) => address,
        Err(cause) => return Err(ReadyError::Configuration { file, cause }),
    };
    let end = Instant::now() + limit;
    loop {
        match greeted(address) {
            Ok(()) => return Ok(()),
            Err(_) if process.is_some_and(|pid| kill(pid, None).is_err()) => {
                return Err(ReadyError::Ended);
            }
            Err(cause) if Instant::now() > end => {
                return Err(ReadyError::Silent { address, cause });
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn greeted(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut said = [0; GREETING.len()];
    stream.read_exact(&mut said)?;
    match said == GREETING {
        true => Ok(()),
        false => Err(io::Error::other("what answers there is no NATS server")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;

    /// A folder with a configuration for a listener that says this, after a while.
    fn server(says: &'static [u8]) -> (tempfile::TempDir, thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SERVER_FILE), format!("listen: \"{address}\"\n")).unwrap();
        drop(listener);
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(150));
            let listener = TcpListener::bind(address).unwrap();
            listener.accept().unwrap().0.write_all(says).unwrap();
        });
        (dir, late)
    }

    #[test]
    fn it_is_waited_for_until_it_greets() {
        let (dir, late) = server(b"INFO {}\r\n");
        wait(dir.path(), None, Duration::from_secs(30)).unwrap();
        late.join().unwrap();
    }

    #[test]
    fn one_that_has_ended_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SERVER_FILE), "listen: \"127.0.0.1:1\"\n").unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        child.wait().unwrap();
        let error = wait(dir.path(), Some(pid), Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error, ReadyError::Ended), "{error}");
    }

    #[test]
    fn another_program_there_and_nobody_there_are_told() {
        let (dir, late) = server(b"220 mail\r\n");
        let error = wait(dir.path(), None, Duration::from_secs(3)).unwrap_err().to_string();
        assert!(error.contains("wait for the bus at 127.0.0.1:"), "{error}");
        late.join().unwrap();
        let error = wait(Path::new("/nowhere"), None, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("/nowhere/nats-server.conf: No such file"), "{error}");
    }
}
