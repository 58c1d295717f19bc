//! What the kernel opens to execute a program: the file, the interpreter of a `#!` line, the loader.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// So many interpreters of interpreters the kernel follows, see execve(2).
const DEPTH: usize = 5;
/// The kernel reads no more of a `#!` line.
const LINE: usize = 256;
/// The longest path of a loader.
const PATH_MAX: usize = 4096;
/// The most segments of a program that are looked at.
const SEGMENTS: u64 = 256;

/// Every file that has to be executable so that `program` is.
///
/// # Errors
/// When the program is not there, is no file, or cannot be read.
pub fn files(program: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    collect(program, &mut found, DEPTH)?;
    Ok(found)
}

fn collect(program: &Path, found: &mut BTreeSet<PathBuf>, depth: usize) -> io::Result<()> {
    let file = File::open(program)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if !found.insert(program.to_owned()) || depth == 0 {
        return Ok(());
    }
    let mut head = [0; LINE];
    let length = read_at(&file, &mut head, 0)?;
    let head = &head[..length];
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        return script(line, found, depth);
    }
    match loader(&file, head)? {
        Some(loader) => collect(&loader, found, depth - 1),
        None => Ok(()),
    }
}

/// The interpreter, and the program that `env` would look for.
fn script(line: &[u8], found: &mut BTreeSet<PathBuf>, depth: usize) -> io::Result<()> {
    let mut words = line
        .split(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
        .filter(|word| !word.is_empty())
        .map(OsStr::from_bytes);
    let Some(interpreter) = words.next().map(Path::new) else { return Ok(()) };
    collect(interpreter, found, depth - 1)?;
    if interpreter.file_name() != Some(OsStr::new("env")) {
        return Ok(());
    }
    let is_option = |word: &&OsStr| word.as_bytes()[0] == b'-' || word.as_bytes().contains(&b'=');
    match words.find(|word| !is_option(word)).and_then(in_path) {
        Some(program) => collect(&program, found, depth - 1),
        None => Ok(()),
    }
}

fn in_path(name: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// The loader that a 64-bit program of this machine names (`PT_INTERP`).
fn loader(file: &File, head: &[u8]) -> io::Result<Option<PathBuf>> {
    const PT_INTERP: u32 = 3;
    if head.len() < 64 || head[..4] != *b"\x7fELF" || head[4] != 2 {
        return Ok(None);
    }
    let table = u64::from_ne_bytes(array(&head[32..40]));
    let size = u64::from(u16::from_ne_bytes(array(&head[54..56])));
    let number = u64::from(u16::from_ne_bytes(array(&head[56..58])));
    for n in 0..number.min(SEGMENTS) {
        let mut segment = [0; 56];
        let Some(at) = table.checked_add(n * size) else { break };
        // A place that no file has is an error of its own, and means the same: no such segment.
        if size < 56 || read_at(file, &mut segment, at).unwrap_or(0) < segment.len() {
            break;
        }
        if u32::from_ne_bytes(array(&segment[..4])) == PT_INTERP {
            let at = u64::from_ne_bytes(array(&segment[8..16]));
            let length = u64::from_ne_bytes(array(&segment[32..40]));
            let mut path = vec![0; usize::try_from(length).unwrap_or(PATH_MAX).min(PATH_MAX)];
            let length = read_at(file, &mut path, at).unwrap_or(0);
            path.truncate(path[..length].iter().position(|byte| *byte == 0).unwrap_or(length));
            return Ok(Some(PathBuf::from(OsString::from_vec(path))));
        }
    }
    Ok(None)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

/// Reads until the buffer is full or the file ends.
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_its_loader_and_the_interpreters_of_a_script() {
        let shell = files(Path::new("/bin/sh")).unwrap();
        assert!(shell.iter().any(|path| path.to_string_lossy().contains("ld-")), "{shell:?}");
        let temp = tempfile::tempdir().unwrap();
        let script = temp.path().join("script");
        std::fs::write(&script, "#!/usr/bin/env -S A=1 sh -e\necho\n").unwrap();
        let found = files(&script).unwrap();
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert!(["script", "env", "sh"].iter().all(|name| names.contains(name)), "{names:?}");
    }

    #[test]
    fn what_is_no_program_is_said_and_hostile_files_end() {
        assert!(files(Path::new("/nonexistent")).is_err());
        assert!(files(Path::new("/usr")).is_err());
        let temp = tempfile::tempdir().unwrap();
        let own = temp.path().join("own");
        std::fs::write(&own, format!("#!{}\n", own.display())).unwrap();
        assert_eq!(files(&own).unwrap().len(), 1);
        let mut hostile = std::fs::read("/bin/sh").unwrap()[..64].to_vec();
        hostile[32..].fill(0xff);
        std::fs::write(&own, &hostile).unwrap();
        assert_eq!(files(&own).unwrap().len(), 1);
    }
}
