//! Tools under rules: the command's programs are stand-ins, and `flock-agent` decides.
//!
//! - [`wire`]: what a stand-in and the broker say to each other
//! - [`shim`]: the stand-in, `flock-agent` under a tool's name
//! - [`broker`]: decides, asks, runs the tool
//! - [`confine`]: starts the command so that the kernel lets it execute little else
//! - [`program`]: what the kernel opens to execute a program

pub mod broker;
pub mod confine;
pub mod program;
pub mod shim;
pub mod wire;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use super::link::Link;
use super::settings::{PRIVATE, Settings};
use super::spelled;
use crate::spelled::ROLE;
use crate::tools::{Rules, SOCKET_VARIABLE};
use broker::Broker;

/// The largest file of rules that is read.
const RULES_MAX: u64 = 4 << 20;
/// Exit status of a stand-in: the rules or an operator say no.
pub const DENIED: u8 = 126;
/// Exit status of a stand-in: the tool's time was over.
pub const TIMED_OUT: u8 = 124;
/// Exit status of a stand-in and of `confine`: flock itself could not do it.
pub const FAILED: u8 = 125;

/// What `flock-agent` is when it is no agent: a tool's stand-in, or what starts the command.
#[must_use]
pub fn other_role() -> Option<ExitCode> {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or(OsStr::new("flock-agent")).to_owned();
    if name != "flock-agent" {
        return Some(shim::main(&name.to_string_lossy(), words));
    }
    let words: Vec<OsString> = words.collect();
    match words.first()?.to_str()? {
        "confine" => Some(confine::main(&words[1..])),
        ROLE => Some(spelled::main(&words[1..])),
        _ => None,
    }
}

/// Begins to serve the tools, if the agent has rules for them. Fails closed: without what holds the
/// rules the agent does not work.
///
/// # Errors
/// When the kernel cannot confine, or the socket cannot be made.
pub fn serve(settings: &Settings, link: &Link) -> io::Result<()> {
    let Some(tools) = settings.tools.clone() else { return Ok(()) };
    if !confine::is_possible() {
        return Err(io::Error::other("tool rules need a kernel with Landlock: flockctl doctor"));
    }
    let mine = |name: &OsStr| PRIVATE.iter().any(|private| name == *private);
    let environment = std::env::vars_os().filter(|(name, _)| !mine(name)).collect();
    let broker = Broker::new(settings.id.clone(), tools, environment, link.clone());
    let listener = broker.listen()?;
    tokio::spawn(broker.serve(listener));
    Ok(())
}

/// The rules of this agent, and how its command is started under them.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The rules.
    pub rules: Rules,
    /// The agent's own directory in memory.
    dir: PathBuf,
    /// `flock-agent` itself.
    own: PathBuf,
}

impl Tools {
    /// Reads the rules from root's file.
    ///
    /// # Errors
    /// When the file cannot be read or understood: without rules nothing is started.
    pub fn read(file: &Path, dir: &Path) -> io::Result<Self> {
        use std::io::Read as _;
        let mut text = String::new();
        fs::File::open(file)?.take(RULES_MAX).read_to_string(&mut text)?;
        let rules = serde_json::from_str(&text)?;
        Self::new(rules, dir)
    }

    /// Rules that are there already.
    ///
    /// # Errors
    /// When this program does not find itself.
    pub fn new(rules: Rules, dir: &Path) -> io::Result<Self> {
        Ok(Self { rules, dir: dir.to_owned(), own: std::env::current_exe()? })
    }

    /// The same, with another program as `flock-agent`.
    #[must_use]
    pub fn with_program(self, own: &Path) -> Self {
        Self { own: own.to_owned(), ..self }
    }

    /// Where the broker listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("tools.sock")
    }

    /// The directory of the stand-ins.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// Makes a stand-in for each tool.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn make_stand_ins(&self) -> io::Result<()> {
        let bin = self.bin();
        match fs::remove_dir_all(&bin) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir_all(&bin)?,
        }
        self.rules.tools.keys().try_for_each(|name| symlink(&self.own, bin.join(name)))
    }

    /// How the command is started: by `flock-agent confine`, with the stand-ins first in `PATH`.
    #[must_use]
    pub fn command(&self, program: &OsStr, arguments: &[OsString]) -> Command {
        let mut command = Command::new(&self.own);
        command.arg("confine").args(&self.rules.direct).arg("--").arg(program).args(arguments);
        let mut path = self.bin().into_os_string();
        if let Some(rest) = std::env::var_os("PATH").filter(|rest| !rest.is_empty()) {
            path.push(":");
            path.push(rest);
        }
        command.env("PATH", path).env(SOCKET_VARIABLE, self.socket());
        command
    }
}
