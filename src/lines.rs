//! Reads lines of bounded length: what a peer or an agent wrote cannot fill memory.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

/// One line, without its line break.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line within the bound.
    Whole(Vec<u8>),
    /// A longer line; its rest was read and dropped.
    TooLong,
    /// No more lines.
    End,
}

/// Reads the next line of at most `max` bytes. A last line without a line break counts as a line.
///
/// # Errors
/// What the reader says.
pub async fn next(reader: &mut (impl AsyncBufRead + Unpin), max: usize) -> io::Result<Line> {
    let mut line = Vec::new();
    let mut too_long = false;
    let mut any = false;
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            break;
        }
        any = true;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        let used = end.map_or(chunk.len(), |at| at + 1);
        too_long |= line.len() + part.len() > max;
        if !too_long {
            line.extend_from_slice(part);
        }
        reader.consume(used);
        if end.is_some() {
            break;
        }
    }
    Ok(match (any, too_long) {
        (false, _) => Line::End,
        (true, true) => Line::TooLong,
        (true, false) => Line::Whole(line),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(text: &[u8], max: usize) -> Vec<Line> {
        // A small buffer, so that lines span several reads.
        let mut reader = tokio::io::BufReader::with_capacity(3, text);
        let mut lines = Vec::new();
        loop {
            match next(&mut reader, max).await.unwrap() {
                Line::End => return lines,
                line => lines.push(line),
            }
        }
    }

    #[tokio::test]
    async fn long_lines_are_dropped_and_the_next_one_is_whole() {
        let whole = |text: &str| Line::Whole(text.as_bytes().to_vec());
        assert_eq!(
            all(b"abcde\nabcdef\n\nlast", 5).await,
            [whole("abcde"), Line::TooLong, whole(""), whole("last")]
        );
        assert_eq!(all(b"", 5).await, []);
    }
}
