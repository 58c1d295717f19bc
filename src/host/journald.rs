//! Writes to the journal what carries fields of its own.

use std::io;
use std::os::unix::net::UnixDatagram;

/// What journald listens on.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Sends one entry. A journal that does not take it at once is not waited for.
///
/// # Errors
/// When the journal does not take it.
pub fn send(fields: &[(&str, String)]) -> io::Result<()> {
    let mut message = Vec::new();
    for (name, value) in fields {
        field(&mut message, name, value);
    }
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(&message, SOCKET).map(drop)
}

/// The form with a length, in which a value may hold anything.
fn field(message: &mut Vec<u8>, name: &str, value: &str) {
    message.extend_from_slice(name.as_bytes());
    message.push(b'\n');
    message.extend_from_slice(&(value.len() as u64).to_le_bytes());
    message.extend_from_slice(value.as_bytes());
    message.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_become_a_field() {
        let mut message = Vec::new();
        field(&mut message, "MESSAGE", "x\nFLOCK_AUDIT_N=9");
        assert_eq!(message, b"MESSAGE\n\x11\0\0\0\0\0\0\0x\nFLOCK_AUDIT_N=9\n");
    }
}
