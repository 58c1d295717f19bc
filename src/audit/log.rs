//! Appends to the audit log. Several processes may: flockd, and every flockctl that root runs.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{IFlags, OFlags};

use crate::audit::chain::{GENESIS, Parsed, Record, has_an_end, hash};
use crate::audit::{AuditError, Entry, How, What, Who, witness};
use crate::names::STATE_DIR;

/// The file that grows.
const NAME: &str = "audit.log";
/// A file that is longer is set aside before the next record.
const FILE_MAX: u64 = 64 << 20;
/// More than the longest record and what a power cut left of another.
const TAIL: u64 = 128 << 10;
/// A process that holds the lock writes one record; one that hangs must not stop the others for ever.
const LOCK_TIME: Duration = Duration::from_secs(5);
const LOCK_EVERY: Duration = Duration::from_millis(5);

/// An audit log: its directory.
#[derive(Clone, Debug)]
pub struct Log {
    dir: PathBuf,
    file_max: u64,
    /// Whether the journal is told, and the file kept from being written over.
    guarded: bool,
}

/// The end of the chain, and what stands behind it.
struct End {
    n: u64,
    hash: String,
    /// Bytes behind the last record that are none.
    rest: Vec<u8>,
    /// Whether the file ends within a line.
    open: bool,
}

impl Log {
    /// The log of this host.
    #[must_use]
    pub fn of_this_host() -> Self {
        Self { dir: STATE_DIR.into(), file_max: FILE_MAX, guarded: true }
    }

    /// A log in another directory: the journal is not told, and its file has no attribute.
    #[must_use]
    pub fn below(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file_max: FILE_MAX, guarded: false }
    }

    #[cfg(test)]
    pub(super) fn with_file_max(self, file_max: u64) -> Self {
        Self { file_max, ..self }
    }

    /// Appends a record and waits until it is on disk; then tells the journal. Gives its number.
    ///
    /// # Errors
    /// When it may not be on disk: no space, no rights, or another process keeps the lock.
    pub fn record(&self, entry: &Entry) -> Result<u64, AuditError> {
        let lock = self.lock()?;
        self.rotate()?;
        let path = self.current();
        let options = || {
            let mut options = File::options();
            let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
            options.read(true).append(true).mode(0o600).custom_flags(nofollow);
            options
        };
        let (mut file, new) = match options().create_new(true).open(&path) {
            Ok(file) => (file, true),
            Err(_) => (options().open(&path).map_err(self.fault("open", &path))?, false),
        };
        let end = self.end(&mut file).map_err(self.fault("read", &path))?;
        let (records, text) = lines(&end, entry)?;
        file.write_all(&text).map_err(self.fault("write", &path))?;
        file.sync_data().map_err(self.fault("write to disk", &path))?;
        if new {
            let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
            dir.map_err(self.fault("write to disk", &self.dir))?;
        }
        self.append_only(&file, true);
        drop(lock);
        if self.guarded {
            records.iter().for_each(witness::send);
        }
        Ok(records.last().map_or(end.n, |record| record.n))
    }

    /// All files of the log, the oldest first, each open and with the length that it had when no
    /// record was under way.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn files(&self) -> Result<Vec<(PathBuf, File, u64)>, AuditError> {
        let _lock = self.lock()?;
        let mut files = Vec::new();
        for path in self.older()?.into_iter().map(|(_, path)| path).chain([self.current()]) {
            match File::open(&path) {
                Ok(file) => {
                    let length = file.metadata().map_err(self.fault("read", &path))?.len();
                    files.push((path, file, length));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.fault("open", &path)(error)),
            }
        }
        Ok(files)
    }

    /// Where records are added.
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    fn fault<'a>(
        &'a self,
        step: &'static str,
        path: &'a Path,
    ) -> impl Fn(io::Error) -> AuditError + 'a {
        move |cause| AuditError::System { step, path: path.to_owned(), cause }
    }

    /// A file of its own: the log itself changes its name.
    fn lock(&self) -> Result<File, AuditError> {
        let path = self.dir.join("audit.lock");
        let open = File::options().create(true).append(true).mode(0o600).open(&path);
        let file = open.map_err(self.fault("open", &path))?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(self.fault("lock", &path)(error)),
                Err(TryLockError::WouldBlock) if begun.elapsed() > LOCK_TIME => {
                    return Err(AuditError::Locked { path, seconds: LOCK_TIME.as_secs() });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_EVERY),
            }
        }
    }

    /// Files that were set aside, by number; 1 is the oldest.
    fn older(&self) -> Result<Vec<(u64, PathBuf)>, AuditError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(self.fault("read", &self.dir))? {
            let entry = entry.map_err(self.fault("read", &self.dir))?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("audit.log."));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                found.push((number, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Sets a file aside that is long enough. One that may only be appended to keeps its name until
    /// somebody with the right to take that attribute away comes along; it grows meanwhile.
    fn rotate(&self) -> Result<(), AuditError> {
        let path = self.current();
        if !fs::metadata(&path).is_ok_and(|stat| stat.len() >= self.file_max) {
            return Ok(());
        }
        let number = self.older()?.last().map_or(1, |(number, _)| number + 1);
        let next = self.dir.join(format!("{NAME}.{number}"));
        let file = File::open(&path).map_err(self.fault("open", &path))?;
        self.append_only(&file, false);
        let moved = fs::rename(&path, &next);
        self.append_only(&file, true);
        match moved {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            moved => moved.map_err(self.fault("set aside", &path)),
        }
    }

    /// Sets the attribute with which even root cannot write over a file's content, or takes it away.
    /// Not every file system has it, and flockd has not the capability to set it: then the chain
    /// alone has to show a change.
    fn append_only(&self, file: &File, on: bool) {
        if !self.guarded {
            return;
        }
        let Ok(flags) = rustix::fs::ioctl_getflags(file) else { return };
        let wanted = if on { flags | IFlags::APPEND } else { flags - IFlags::APPEND };
        if wanted != flags {
            let _ = rustix::fs::ioctl_setflags(file, wanted);
        }
    }

    /// Where the chain ends: in this file, or in the one before when this is empty.
    fn end(&self, file: &mut File) -> io::Result<End> {
        let end = end_of(file)?;
        if end.n > 0 {
            return Ok(end);
        }
        let older = self.older().map_err(io::Error::other)?;
        let Some((_, path)) = older.last() else { return Ok(end) };
        let before = end_of(&mut File::open(path)?)?;
        // A file can be set aside with an unfinished line at its end.
        let rests = [before.rest, end.rest].into_iter().filter(|rest| !rest.is_empty());
        let rest = rests.collect::<Vec<_>>().join(&b'\n');
        Ok(End { n: before.n, hash: before.hash, rest, open: end.open })
    }
}

/// The last record of one file; number 0 when there is none.
fn end_of(file: &mut File) -> io::Result<End> {
    let length = file.metadata()?.size();
    let mut from = length.saturating_sub(TAIL);
    loop {
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        (&*file).take(length - from).read_to_end(&mut text)?;
        let end = end_in(&text);
        if end.n > 0 || from == 0 {
            return Ok(end);
        }
        // Nothing in the tail is a record: look at all of it.
        from = 0;
    }
}

fn end_in(text: &[u8]) -> End {
    let open = text.last().is_some_and(|byte| *byte != b'\n');
    let mut behind = text.len();
    let mut stop = text.len() - usize::from(!open && !text.is_empty());
    loop {
        let start = text[..stop].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if let Parsed::Whole(Record { n, hash, .. }) = Record::parse(&text[start..stop]) {
            let rest = text[behind.min(text.len())..].strip_suffix(b"\n");
            let rest = rest.unwrap_or(&text[behind.min(text.len())..]).to_vec();
            return End { n, hash, rest, open };
        }
        if start == 0 {
            let rest = text.strip_suffix(b"\n").unwrap_or(text).to_vec();
            return End { n: 0, hash: GENESIS.to_owned(), rest, open };
        }
        behind = start;
        stop = start - 1;
    }
}

/// What is to be appended: the end of an open line, a record of what is set aside, the record.
fn lines(end: &End, entry: &Entry) -> Result<(Vec<Record>, Vec<u8>), AuditError> {
    let mut text = Vec::new();
    if end.open {
        text.push(b'\n');
    }
    let mut records: Vec<Record> = Vec::new();
    let aside = (!end.rest.is_empty()).then(|| set_aside(&end.rest));
    for entry in aside.iter().chain([entry]) {
        let (n, prev) = records.last().map_or((end.n, &end.hash), |last| (last.n, &last.hash));
        let made = Record::after(n, prev, entry);
        let (record, line) = made.map_err(|error| AuditError::Inner(error.to_string()))?;
        text.extend_from_slice(&line);
        text.push(b'\n');
        records.push(record);
    }
    Ok((records, text))
}

/// The record of what stood at the end and is none. It stays where it is: nothing is ever cut off.
fn set_aside(rest: &[u8]) -> Entry {
    let who = Who { uid: 0, name: "root".to_owned(), how: How::Flockd };
    Entry::new(who, kind_of(rest), NAME, aside_detail(rest))
}

/// A power cut leaves a line without its end, or holes; anything else was done to a whole record.
pub(super) fn kind_of(rest: &[u8]) -> What {
    let changed = |line| matches!(Record::parse(line), Parsed::Changed(_));
    let ended = has_an_end(rest) && !rest.contains(&0);
    match ended || rest.split(|byte| *byte == b'\n').any(changed) {
        true => What::LogDamaged,
        false => What::LogTorn,
    }
}

/// What the record of something that was set aside says of it.
pub(super) fn aside_detail(rest: &[u8]) -> String {
    format!("{} bytes before this record are none, sha256 {}", rest.len(), hash(rest))
}
