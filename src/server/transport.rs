//! The bytes of one connection, below HTTP: when nothing moves any more, and what is thrown away unread.
//!
//! A body that is refused has to be taken all the same: a client that is still sending it does not read the answer. Under
//! overload that is most of the bytes that come. Those of plain TCP are dropped by the kernel, uncopied ([`Unwanted`]). For
//! that they must not have been read together with the head, so the first read of a request is a small one.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// The most bytes of a request's first read: a head, and a body that is not worth refusing.
pub const FIRST_READ: usize = 2 << 10;

/// A connection's bytes, encrypted or not.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {
    /// Throws away at most `most` bytes, and says how many: 0 at the end. `None` where they can only be read.
    fn poll_skip(&mut self, _context: &mut Context<'_>, _most: u64) -> Option<Poll<io::Result<usize>>> {
        None
    }
}

impl Bytes for TcpStream {
    /// By `MSG_TRUNC`: <https://man7.org/linux/man-pages/man7/tcp.7.html>.
    #[cfg(target_os = "linux")]
    fn poll_skip(&mut self, context: &mut Context<'_>, most: u64) -> Option<Poll<io::Result<usize>>> {
        const SKIP: usize = 256 << 10;
        thread_local! {
            /// Says how many bytes to throw away: nothing is written to it, so that it takes no memory.
            static NOWHERE: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(Vec::with_capacity(SKIP));
        }
        NOWHERE.with_borrow_mut(|nowhere| {
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

#[cfg(feature = "tls")]
impl Bytes for tokio_rustls::server::TlsStream<TcpStream> {}

#[cfg(test)]
impl Bytes for tokio::io::DuplexStream {}

/// How many of the next bytes of a connection nobody will look at.
#[derive(Debug, Clone, Default)]
pub struct Unwanted(Arc<AtomicU64>);

impl Unwanted {
    /// The next `bytes` bytes, none of which has been read.
    pub fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// A stream on which something has to move, in either direction: where nothing does for `limit`, it fails. That ends
/// connections that never send a request, and those whose client does not read the answer.
pub struct Transport<S> {
    stream: S,
    limit: Duration,
    moved: Instant,
    alarm: Pin<Box<Sleep>>,
    unwanted: Unwanted,
    /// Bytes that were thrown away and not given out yet.
    skipped: usize,
    /// Whether nothing was read since something was written.
    begins: bool,
}

impl<S> Transport<S> {
    pub fn new(stream: S, limit: Duration) -> Self {
        let alarm = Box::pin(tokio::time::sleep(limit));
        Self { stream, limit, moved: Instant::now(), alarm, unwanted: Unwanted::default(), skipped: 0, begins: true }
    }

    pub fn unwanted(&self) -> Unwanted {
        self.unwanted.clone()
    }

    /// What a transfer came to. Pending: the task is woken when it is too late.
    fn check<T>(&mut self, context: &mut Context<'_>, transfer: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if transfer.is_ready() {
            self.moved = Instant::now();
            return transfer;
        }
        loop {
            ready!(self.alarm.as_mut().poll(context));
            let end = self.moved + self.limit;
            if end <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.alarm.as_mut().reset(end);
        }
    }
}

impl AsyncRead for Transport<Box<dyn Bytes>> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unwanted = self.unwanted.0.load(Ordering::Relaxed);
        if self.skipped == 0 && unwanted > 0 {
            match self.stream.poll_skip(context, unwanted) {
                // Read like all else.
                None => self.unwanted.set(0),
                Some(skipped) => {
                    self.skipped = ready!(self.check(context, skipped))?;
                    self.unwanted.set(unwanted.saturating_sub(self.skipped as u64));
                }
            }
        }
        if self.skipped > 0 {
            let piece = self.skipped.min(buffer.remaining());
            buffer.initialize_unfilled_to(piece);
            buffer.advance(piece);
            self.skipped -= piece;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = if self.begins {
            let mut room = [MaybeUninit::uninit(); FIRST_READ];
            let most = buffer.remaining().min(FIRST_READ);
            let mut first = ReadBuf::uninit(room.get_mut(..most).unwrap_or_default());
            let read = Pin::new(&mut self.stream).poll_read(context, &mut first);
            buffer.put_slice(first.filled());
            read
        } else {
            Pin::new(&mut self.stream).poll_read(context, buffer)
        };
        self.begins &= buffer.filled().len() == before;
        self.check(context, read)
    }
}

impl AsyncWrite for Transport<Box<dyn Bytes>> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.begins = true;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.check(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.begins = true;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.check(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.check(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_stream_on_which_nothing_moves_fails_and_whatever_moves_puts_that_off() {
        const LIMIT: Duration = Duration::from_millis(200);
        let (ours, mut theirs) = tokio::io::duplex(64);
        let started = Instant::now();
        let mut stream = Transport::new(Box::new(ours) as Box<dyn Bytes>, LIMIT);
        for byte in 0..3 {
            tokio::time::sleep(LIMIT / 2).await;
            theirs.write_all(&[byte]).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), byte);
        }
        // The other end no longer reads.
        let error = loop {
            if let Err(error) = stream.write_all(&[0; 16]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= LIMIT / 2 * 3 + LIMIT);
    }

    #[tokio::test]
    async fn what_nobody_wants_is_thrown_away_and_not_a_byte_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, (duplex, mut other)) = (listener.accept().await.unwrap().0, tokio::io::duplex(1 << 20));
        let streams: [(Box<dyn Bytes>, &mut (dyn AsyncWrite + Unpin)); 2] =
            [(Box::new(tcp), &mut client), (Box::new(duplex), &mut other)];
        for (stream, client) in streams {
            let mut stream = Transport::new(stream, Duration::from_secs(60));
            let unwanted = stream.unwanted();
            for length in [1, 5000, 200_000] {
                let sent: Vec<u8> = (0..length + 200).map(|i| (i % 251) as u8).collect();
                client.write_all(&sent).await.unwrap();
                let mut head = [0; 100];
                stream.read_exact(&mut head).await.unwrap();
                unwanted.set(length as u64);
                stream.read_exact(&mut vec![0; length]).await.unwrap();
                let mut next = [0; 100];
                stream.read_exact(&mut next).await.unwrap();
                assert_eq!((&head[..], &next[..]), (&sent[..100], &sent[length + 100..]));
                assert_eq!(unwanted.0.load(Ordering::Relaxed), 0);
            }
        }
    }

    #[tokio::test]
    async fn a_request_begins_with_a_small_read_and_goes_on_with_large_ones() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut stream = Transport::new(Box::new(ours) as Box<dyn Bytes>, Duration::from_secs(60));
        let mut buffer = vec![0; 1 << 17];
        for _ in 0..2 {
            theirs.write_all(&buffer).await.unwrap();
            assert_eq!(stream.read(&mut buffer).await.unwrap(), FIRST_READ);
            assert_eq!(stream.read(&mut buffer).await.unwrap(), buffer.len() - FIRST_READ);
            stream.write_all(b"answer").await.unwrap();
        }
    }
}
