//! The byte streams that connections consist of, and how the kernel discards bytes of them without copying.

#[cfg(target_os = "linux")]
use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// The number of bytes that the kernel accepts beyond what it can send at once. By default it accepts up to the size of
/// its buffers, which is megabytes, and the server could not see for minutes whether a slow client receives anything.
#[cfg(target_os = "linux")]
const UNSENT_LIMIT: u32 = 32 << 10;

/// Makes the kernel accept only as many bytes as it can send soon.
pub fn limit_unsent(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_LIMIT);
    #[cfg(not(target_os = "linux"))]
    let _ = stream;
}

/// The byte stream of a connection: TCP, a Unix socket, or TLS.
pub trait SocketStream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Discards at most `most` incoming bytes and returns how many there were, 0 at the end of the stream. Returns
    /// `None` if the stream cannot discard bytes without reading them.
    fn poll_skip(&mut self, _context: &mut Context<'_>, _most: u64) -> Option<Poll<io::Result<usize>>> {
        None
    }
}

impl SocketStream for TcpStream {
    /// Uses `MSG_TRUNC`: <https://man7.org/linux/man-pages/man7/tcp.7.html>.
    #[cfg(target_os = "linux")]
    fn poll_skip(&mut self, context: &mut Context<'_>, most: u64) -> Option<Poll<io::Result<usize>>> {
        const SKIP: usize = 256 << 10;
        thread_local! {
            /// The buffer whose capacity tells the kernel how many bytes to discard. Nothing is written to it, so it
            /// takes no memory.
            static DISCARD_BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(SKIP));
        }
        DISCARD_BUFFER.with_borrow_mut(|nowhere| {
            let most = usize::try_from(most).unwrap_or(usize::MAX).min(SKIP);
            let nowhere = nowhere.spare_capacity_mut().get_mut(..most)?;
            Some(loop {
                match self.poll_read_ready(context) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                    Poll::Pending => break Poll::Pending,
                }
                let socket = socket2::SockRef::from(&*self);
                match self.try_io(tokio::io::Interest::READABLE, || socket.recv_with_flags(nowhere, libc::MSG_TRUNC)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    skipped => break Poll::Ready(skipped),
                }
            })
        })
    }
}

#[cfg(unix)]
impl SocketStream for tokio::net::UnixStream {}

#[cfg(test)]
impl SocketStream for tokio::io::DuplexStream {}
