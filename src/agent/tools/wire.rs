//! What a tool's stand-in and the broker say to each other, on a Unix socket.
//!
//! The stand-in sends one message: the length, a [`Request`] as JSON, and its standard input as a
//! file descriptor, so that the tool reads from it what it wants and leaves the rest. The broker
//! sends frames: a byte that says what, the length, the bytes.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWrite, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// The largest request: the most arguments, escaped.
pub const REQUEST_MAX: usize = 512 * 1024;
/// The largest frame.
pub const FRAME_MAX: usize = 32 * 1024;

/// What a stand-in asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The tool's name.
    pub tool: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where it is to run.
    pub folder: String,
    /// The task that the caller says it works on.
    pub task: Option<String>,
}

/// What the broker sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A part of the tool's standard output.
    Output,
    /// A part of its standard error.
    Error,
    /// The end: [`End`] as JSON.
    End,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Output => b'o',
            Self::Error => b'e',
            Self::End => b'.',
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The exit status of the stand-in.
    pub status: u8,
    /// A line for people, when it is not the tool's own end.
    pub message: Option<String>,
}

/// Sends the request and the standard input.
///
/// # Errors
/// When the broker does not take it.
pub fn send_request(to: impl AsFd, request: &Request, input: BorrowedFd<'_>) -> io::Result<()> {
    let json = serde_json::to_vec(request)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    let mut whole = length.to_be_bytes().to_vec();
    whole.extend(json);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let input = [input];
    control.push(SendAncillaryMessage::ScmRights(&input));
    let mut sent = sendmsg(&to, &[IoSlice::new(&whole)], &mut control, SendFlags::NOSIGNAL)?;
    while sent < whole.len() {
        let rest = [IoSlice::new(&whole[sent..])];
        sent += sendmsg(&to, &rest, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Receives a request and the file descriptor that came with it.
///
/// # Errors
/// When it is too large, no request, or the peer leaves.
pub async fn receive_request(from: &UnixStream) -> io::Result<(Request, OwnedFd)> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut input = None;
    let mut bytes = Vec::new();
    let mut wanted = None;
    loop {
        if wanted.is_none() && bytes.len() >= 4 {
            let length = [bytes[0], bytes[1], bytes[2], bytes[3]];
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            if length > REQUEST_MAX {
                return Err(bad("the request is too large"));
            }
            wanted = Some(4 + length);
        }
        if let Some(wanted) = wanted.filter(|wanted| bytes.len() >= *wanted) {
            let request = serde_json::from_slice(&bytes[4..wanted])?;
            return Ok((request, input.ok_or_else(|| bad("no standard input came with it"))?));
        }
        from.readable().await?;
        match from.try_io(Interest::READABLE, || receive(from, &mut bytes, &mut input)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// One read. Of several descriptors the first one counts; the others are closed.
fn receive(
    from: &UnixStream,
    bytes: &mut Vec<u8>,
    input: &mut Option<OwnedFd>,
) -> io::Result<usize> {
    let mut buffer = [0; 16 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(from, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for descriptor in descriptors {
                input.get_or_insert(descriptor);
            }
        }
    }
    bytes.extend_from_slice(&buffer[..got.bytes]);
    Ok(got.bytes)
}

/// Sends one frame.
///
/// # Errors
/// When the peer is gone.
pub async fn send_frame(
    to: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    bytes: &[u8],
) -> io::Result<()> {
    to.write_all(&frame(kind, bytes)?).await
}

/// The bytes of one frame.
///
/// # Errors
/// When they are too many.
pub fn frame(kind: Kind, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(5 + bytes.len());
    frame.push(kind.byte());
    frame.extend(length.to_be_bytes());
    frame.extend_from_slice(bytes);
    Ok(frame)
}

/// Reads one frame.
///
/// # Errors
/// When the broker is gone or sends something else.
pub fn read_frame(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let kind = [Kind::Output, Kind::Error, Kind::End].into_iter().find(|k| k.byte() == head[0]);
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let Some(kind) = kind.filter(|_| length <= FRAME_MAX) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of another kind"));
    };
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok((kind, bytes))
}
