//! One stretch of the journal, exactly: every entry once, also while journald rotates its files.
//!
//! `journalctl --follow` can pass over an entry: one that stands in a file which was made or renamed
//! while it read (each agent's user has a file of its own). So following is only the bell. When it
//! has rung at an entry, everything up to that entry is on disk; a fresh journalctl reads from the
//! last place to there, and what it read counts only if no file came or went meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::journal::reader::{Next, Reader, matches};
use crate::journal::{JournalError, Place, Written};
use crate::names::AgentId;

/// Where journald keeps its files.
const JOURNALS: [&str; 2] = ["/var/log/journal", "/run/log/journal"];
/// A stretch ends when it holds this much text, or so many entries.
const BATCH_BYTES: usize = 2 << 20;
const BATCH_ENTRIES: usize = 20_000;

/// A file's name and number.
type File = (std::ffi::OsString, u64);

/// The bell is doubted after this, whatever speaks for it.
const DOUBT_EVERY: Duration = Duration::from_secs(300);
/// How long the first ring may take, and how often another journalctl is asked.
const FIRST: Duration = Duration::from_secs(1);
const BEGIN_TRIES: u32 = 5;

/// A stretch of the journal.
#[derive(Debug, Default)]
pub struct Batch {
    /// Its entries, in the journal's order.
    pub written: Vec<Written>,
    /// The place of the last one.
    pub place: Option<Place>,
    /// The place to read on from is not in the journal any more; what followed it may be gone, too.
    pub gap: bool,
    /// There is more before the place that was asked for.
    pub more: bool,
}

/// How a stretch is read.
#[derive(Clone, Copy)]
struct Way<'a> {
    agents: &'a [AgentId],
    from: Option<&'a Place>,
    until: &'a Place,
    /// Fields of more than 4 KiB are left out: for an entry that is too long to read.
    short: bool,
    /// `from` is not there: all is read, and what is later than it is taken.
    sift: bool,
}

/// Everything of these agents after `from` (from the oldest on without it) up to and with `until`.
///
/// # Errors
/// [`JournalError::Moved`] when the journal's files changed meanwhile: try again; or what journalctl
/// says.
pub async fn read_batch(
    agents: &[AgentId],
    from: Option<&Place>,
    until: &Place,
) -> Result<Batch, JournalError> {
    let mut way = Way { agents, from, until, short: false, sift: false };
    let before = files();
    let mut batch = Batch::default();
    // Each turn changes the way, at most once in each respect.
    for _ in 0..3 {
        match stretch(way).await? {
            Ended::Well(read) => {
                batch = read;
                break;
            }
            Ended::Gap => way.sift = true,
            Ended::TooLong => way.short = true,
        }
    }
    batch.gap = way.sift;
    match files() == before {
        true => Ok(batch),
        false => Err(JournalError::Moved),
    }
}

enum Ended {
    Well(Batch),
    /// The first entry is not the one to read on from.
    Gap,
    /// The first entry is too long.
    TooLong,
}

async fn stretch(way: Way<'_>) -> Result<Ended, JournalError> {
    let mut reader = Reader::start(way.arguments())?;
    let boot = this_boot();
    let mut batch = Batch::default();
    let mut bytes = 0;
    let mut anchor = way.from.filter(|_| !way.sift);
    loop {
        let written = match reader.next().await? {
            Next::End => return Ok(Ended::Well(batch)),
            // What was read before it comes first.
            Next::TooLong if !batch.written.is_empty() => {
                return Ok(Ended::Well(Batch { more: true, ..batch }));
            }
            Next::TooLong => return Ok(Ended::TooLong),
            Next::Other(_) => continue,
            Next::Written(written) => *written,
        };
        let Some(place) = Place::parse(&written.cursor) else { continue };
        let last = place.is(way.until);
        match (anchor.take(), way.from) {
            (Some(from), _) if place.is(from) => {}
            (Some(_), _) => return Ok(Ended::Gap),
            (None, Some(from)) if way.sift && !place.is_after(from, &boot) => {}
            (None, _) => {
                bytes += written.entry.text.len();
                batch.written.push(written);
                batch.place = Some(place);
            }
        }
        if last {
            return Ok(Ended::Well(batch));
        }
        // One entry is enough in the short form: the next ones are wanted whole again.
        let full = way.short || bytes > BATCH_BYTES || batch.written.len() >= BATCH_ENTRIES;
        if full && !batch.written.is_empty() {
            return Ok(Ended::Well(Batch { more: true, ..batch }));
        }
    }
}

impl Way<'_> {
    fn arguments(&self) -> Vec<String> {
        let mut all = Vec::new();
        if !self.short {
            all.push("--all".to_owned());
        }
        if let Some(from) = self.from.filter(|_| !self.sift) {
            all.push(format!("--cursor={}", from.cursor()));
        }
        all.extend(matches(self.agents.iter()));
        all
    }
}

/// The newest entry of these agents, if there is one.
///
/// # Errors
/// What journalctl says.
pub async fn newest(agents: &[AgentId]) -> Result<Option<Place>, JournalError> {
    let mut arguments = vec!["--lines=1".to_owned()];
    arguments.extend(matches(agents.iter()));
    let mut reader = Reader::start(arguments)?;
    let mut place = None;
    loop {
        match reader.next().await? {
            Next::Written(written) => place = Place::parse(&written.cursor),
            Next::Other(_) | Next::TooLong => {}
            Next::End => return Ok(place),
        }
    }
}

/// Whether no agent wrote anything after this place. To read what all others wrote since is cheap
/// when that is little; to ask for each agent's newest entry costs a search for each of them.
async fn is_last(place: &Place) -> Result<bool, JournalError> {
    let mut reader = Reader::start(vec![format!("--cursor={}", place.cursor())])?;
    // The place itself comes first. Without it nothing is known of what was after it.
    let first = match reader.next().await? {
        Next::Written(written) => written.cursor,
        Next::Other(cursor) => cursor,
        Next::TooLong | Next::End => return Ok(false),
    };
    if !Place::parse(&first).is_some_and(|first| first.is(place)) {
        return Ok(false);
    }
    loop {
        match reader.next().await? {
            Next::Other(_) => {}
            Next::Written(_) | Next::TooLong => return Ok(false),
            Next::End => return Ok(true),
        }
    }
}

/// Rings when an agent's entry was added to the journal.
pub struct Bell {
    place: watch::Receiver<Option<Place>>,
    /// The last entry of anybody that it heard of.
    heard: watch::Receiver<Option<Place>>,
    reader: JoinHandle<Result<(), JournalError>>,
    /// The journal's files when it was last doubted, and when that was.
    files: BTreeSet<File>,
    doubted: Instant,
}

impl Bell {
    /// Listens to the whole journal, not with matches: each of them costs journalctl a search for
    /// each entry. It begins with the newest entry.
    ///
    /// # Errors
    /// When journalctl cannot be run.
    pub fn open() -> Result<Self, JournalError> {
        let arguments = ["--follow", "--lines=1", "--boot=all"];
        let mut reader = Reader::start(arguments.map(str::to_owned).to_vec())?;
        let (sender, place) = watch::channel(None);
        let (hears, heard) = watch::channel(None);
        let reader = tokio::spawn(async move {
            loop {
                match reader.next().await? {
                    Next::Written(written) => {
                        let place = Place::parse(&written.cursor);
                        hears.send_replace(place.clone());
                        sender.send_replace(place);
                    }
                    Next::Other(cursor) => {
                        hears.send_replace(Place::parse(&cursor));
                    }
                    Next::TooLong => {}
                    Next::End => return Err(JournalError::Failed("it ended".to_owned())),
                }
            }
        });
        Ok(Self { place, heard, reader, files: BTreeSet::new(), doubted: Instant::now() })
    }

    /// Whether nothing can have passed it by: no agent wrote after the last entry it heard of, and
    /// the files that it follows are those of the last doubt, which is not long ago.
    ///
    /// # Errors
    /// When journalctl cannot be run, or what it says.
    pub async fn is_sure(&mut self) -> Result<bool, JournalError> {
        let files = files();
        let heard = self.heard.borrow().clone();
        if files == self.files
            && self.doubted.elapsed() < DOUBT_EVERY
            && let Some(heard) = heard
            && is_last(&heard).await?
        {
            return Ok(true);
        }
        (self.files, self.doubted) = (files, Instant::now());
        Ok(false)
    }

    /// Waits for the newest entry, with which it begins. When that does not come, this journalctl
    /// (seen with systemd 252, after the journal was emptied) would say nothing ever, and another is
    /// asked.
    ///
    /// # Errors
    /// When journalctl cannot be run, or ends.
    pub async fn begin(mut self) -> Result<Self, JournalError> {
        for _ in 0..BEGIN_TRIES {
            match timeout(FIRST, self.rung()).await {
                Ok(rung) => return rung.map(|_| self),
                Err(_) => self = Self::open()?,
            }
        }
        // There may be no entry at all.
        Ok(self)
    }

    /// The newest place it rang at, without waiting.
    pub fn latest(&mut self) -> Option<Place> {
        self.place.borrow_and_update().clone()
    }

    /// Waits for the bell; gives the newest place it rang at.
    ///
    /// # Errors
    /// When journalctl ended; listen again.
    pub async fn rung(&mut self) -> Result<Option<Place>, JournalError> {
        match self.place.changed().await {
            Ok(()) => Ok(self.place.borrow_and_update().clone()),
            Err(_) => match (&mut self.reader).await {
                Ok(Err(error)) => Err(error),
                _ => Err(JournalError::Failed("it ended".to_owned())),
            },
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The journal's files.
fn files() -> BTreeSet<File> {
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = JOURNALS.iter().flat_map(|dir| below(Path::new(dir)));
    dirs.flat_map(|dir| below(&dir.path())).map(|file| (file.file_name(), file.ino())).collect()
}

/// This boot as journald writes it.
#[must_use]
pub fn this_boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().replace('-', "")
}
