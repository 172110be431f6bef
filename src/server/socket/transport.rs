//! The byte stream of one connection, below HTTP: when it times out, which bytes it discards unread, and how it is
//! closed.
//!
//! The body of a refused request must still be received, because a client does not read the response while it is
//! sending. Under overload most of the incoming bytes are of this kind. On plain TCP the kernel drops them without
//! copying ([`ReceiveState::skip`]). This works only for bytes that were not read together with the head of the
//! request, so the first read of a request is small.
//!
//! If a connection is closed while its client may still be sending, the writing half is closed first, and incoming
//! bytes are discarded for a while. Otherwise bytes that arrive at the closed socket would reset the connection, and
//! the client would lose the response (RFC 9112, section 9.6).

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::activity::Activity;
use super::malformed;

/// The size limit of the first read of a request, in bytes: a head, and a body that is not worth refusing unread.
pub const FIRST_READ: usize = 2 << 10;

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

/// Limits of a lingering close, as nginx calls it: how long incoming bytes are discarded in total, how long without any
/// arriving, and how many of them.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_IDLE: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 1 << 30;

/// The size of one read of bytes that are discarded.
const SCRATCH: usize = 16 << 10;
/// The length of HTTP/2's connection preface, which is read first to tell HTTP/2 from HTTP/1.
const PREFACE: usize = 24;

/// How long requests in flight continue after the client has closed its sending side. The client may have closed only
/// that side; more often it is gone, and the work for it should end soon.
const HALF_CLOSED_LIMIT: Duration = Duration::from_secs(1);

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
                        /// The buffer whose capacity tells the kernel how many bytes to discard. Nothing is written to
                        /// it, so it takes no memory.
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

/// What is known about the bytes that a connection receives. The connection's stream and its requests share it.
#[derive(Debug, Clone, Default)]
pub struct ReceiveState(Arc<ReceiveFlags>);

#[derive(Debug, Default)]
struct ReceiveFlags {
    /// How many of the next bytes may be discarded unread.
    skip: AtomicU64,
    /// Whether bytes of a request were read whose body has not ended yet.
    unfinished: AtomicBool,
    /// Whether the connection must be closed after the current response.
    close: AtomicBool,
    /// Whether several requests share the connection at the same time (HTTP/2).
    multiplexed: AtomicBool,
}

impl ReceiveState {
    /// Discards the next `bytes` bytes. None of them may have been read yet.
    pub fn skip(&self, bytes: u64) {
        self.0.skip.store(bytes, Ordering::Relaxed);
    }

    /// Records that the body of the request has been received completely.
    pub fn body_ended(&self) {
        self.0.unfinished.store(false, Ordering::Relaxed);
    }

    /// Records that the body of the request will not be received completely.
    pub fn close_after_answer(&self) {
        self.0.close.store(true, Ordering::Relaxed);
    }

    pub fn must_close(&self) -> bool {
        self.0.close.load(Ordering::Relaxed)
    }

    /// Records that the connection is HTTP/2.
    pub fn is_multiplexed(&self) {
        self.0.multiplexed.store(true, Ordering::Relaxed);
    }

    /// Returns whether the client is probably still sending, as far as this is known.
    fn is_unfinished(&self) -> bool {
        self.0.unfinished.load(Ordering::Relaxed) && !self.0.multiplexed.load(Ordering::Relaxed)
    }
}

/// A stream that fails if no byte moves in either direction for `limit`. This ends connections that never send a
/// request, and connections whose client does not read the response.
pub struct Transport<S> {
    stream: S,
    limit: Duration,
    moved: Instant,
    alarm: Pin<Box<Sleep>>,
    activity: Arc<Activity>,
    /// The time until which HTTP does not learn that the client has closed its sending side. Once HTTP learns it, it
    /// drops the requests in flight. `None` until the client closes its side.
    half_closed: Option<Pin<Box<Sleep>>>,
    received: ReceiveState,
    /// The number of bytes that were discarded and not yet reported to HTTP as read.
    skipped: usize,
    /// Whether the next read is the first one of a request: nothing but a preface was read since the last write.
    at_request_start: bool,
    /// Set once the writing half is closed.
    closing: Option<LingeringClose>,
    /// The length of the first read of the current request, if it was the only read.
    first: Option<usize>,
    /// A response that replaces hyper's own, and how many of its bytes are written.
    replacement: Option<(Vec<u8>, usize)>,
}

thread_local! {
        /// The bytes of the latest first read on this thread. Hyper parses a head, and refuses it, right after reading
        /// it.
    static FIRST_READ_BYTES: RefCell<[u8; FIRST_READ]> = const { RefCell::new([0; FIRST_READ]) };
}

/// The remaining limits while incoming bytes are discarded before a connection is closed.
struct LingeringClose {
    until: Instant,
    bytes: u64,
    /// Whether to wait for bytes that have not arrived yet.
    waits: bool,
}

impl<S> Transport<S> {
    pub fn new(stream: S, limit: Duration, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            limit,
            moved: Instant::now(),
            alarm: Box::pin(tokio::time::sleep(limit)),
            activity,
            half_closed: None,
            received: ReceiveState::default(),
            skipped: 0,
            at_request_start: true,
            closing: None,
            first: None,
            replacement: None,
        }
    }

    pub fn received(&self) -> ReceiveState {
        self.received.clone()
    }

    /// Returns `transfer`, or a timeout error if the transfer is pending and nothing has moved for `limit`. The task is
    /// woken when the time is over.
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

    /// Records the result of a write, and checks the time limit.
    fn wrote(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.at_request_start = true;
        self.activity.set_blocked(written.is_pending());
        self.check(context, written)
    }

    /// Returns `Ready` when HTTP may learn that the client has closed its sending side.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.activity.in_flight() == 0 {
            return Poll::Ready(());
        }
        self.half_closed.get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_CLOSED_LIMIT))).as_mut().poll(context)
    }
}

impl Transport<Box<dyn SocketStream>> {
    /// Writes another response in place of `bytes`, if `bytes` are the response with which hyper itself refuses a
    /// request.
    fn poll_replace(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.replacement.is_none() {
            let first = self.first;
            let answer = FIRST_READ_BYTES.with_borrow(|room| {
                malformed::replace_hyper_refusal(bytes, first.and_then(|length| room.get(..length)))
            });
            self.replacement = Some((answer?, 0));
        }
        let (answer, mut sent) = self.replacement.take()?;
        while let Some(rest) = answer.get(sent..).filter(|rest| !rest.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(context, rest);
            match self.wrote(context, written) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(length)) => sent += length,
                other => {
                    self.replacement = Some((answer, sent));
                    return Some(other);
                }
            }
        }
        Some(Poll::Ready(Ok(bytes.len())))
    }
}

impl AsyncRead for Transport<Box<dyn SocketStream>> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let skip = self.received.0.skip.load(Ordering::Relaxed);
        if self.skipped == 0 && skip > 0 {
            match self.stream.poll_skip(context, skip) {
                // The bytes are read and discarded like all others.
                None => self.received.skip(0),
                Some(skipped) => {
                    self.skipped = ready!(self.check(context, skipped))?;
                    self.received.skip(skip.saturating_sub(self.skipped as u64));
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
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = if self.at_request_start {
            FIRST_READ_BYTES.with_borrow_mut(|room| {
                let most = buffer.remaining().min(FIRST_READ);
                let mut first = ReadBuf::new(room.get_mut(..most).unwrap_or_default());
                let read = Pin::new(&mut self.stream).poll_read(context, &mut first);
                buffer.put_slice(first.filled());
                self.first = Some(first.filled().len());
                read
            })
        } else {
            self.first = None;
            Pin::new(&mut self.stream).poll_read(context, buffer)
        };
        let came = buffer.filled().len() - before;
        if came > 0 {
            self.at_request_start &= came <= PREFACE;
            self.received.0.unfinished.store(true, Ordering::Relaxed);
        } else if matches!(read, Poll::Ready(Ok(()))) && room > 0 {
            ready!(self.poll_end(context));
        }
        self.check(context, read)
    }
}

impl AsyncWrite for Transport<Box<dyn SocketStream>> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(replaced) = self.poll_replace(context, bytes) {
            return replaced;
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = bytes
            && let Some(replaced) = self.poll_replace(context, only)
        {
            return replaced;
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.wrote(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        // TLS may hold back bytes that it has accepted.
        self.activity.set_blocked(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            let shut = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.check(context, shut))?;
            let until = Instant::now() + LINGER;
            self.closing = Some(LingeringClose { until, bytes: 0, waits: self.received.is_unfinished() });
        }
        self.poll_linger(context).map(Ok)
    }
}

impl Transport<Box<dyn SocketStream>> {
    /// Discards what the client still sends, until the stream ends, the client pauses, or a limit is reached.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(closing) = self.closing.as_mut() else { return Poll::Ready(()) };
        loop {
            let discarded = match self.stream.poll_skip(context, u64::MAX) {
                Some(skipped) => skipped,
                None => {
                    let mut scratch = [MaybeUninit::uninit(); SCRATCH];
                    let mut scratch = ReadBuf::uninit(&mut scratch);
                    let read = Pin::new(&mut self.stream).poll_read(context, &mut scratch);
                    read.map_ok(|()| scratch.filled().len())
                }
            };
            match discarded {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(bytes)) => {
                    closing.bytes = closing.bytes.saturating_add(bytes as u64);
                    self.moved = Instant::now();
                    if closing.bytes > LINGER_BYTES || closing.until <= self.moved {
                        return Poll::Ready(());
                    }
                }
                Poll::Pending if !closing.waits => return Poll::Ready(()),
                Poll::Pending => {
                    let end = closing.until.min(self.moved + LINGER_IDLE);
                    if end <= Instant::now() {
                        return Poll::Ready(());
                    }
                    self.alarm.as_mut().reset(end);
                    ready!(self.alarm.as_mut().poll(context));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_stream_fails_after_a_time_without_any_transfer() {
        const LIMIT: Duration = Duration::from_millis(200);
        let (ours, mut theirs) = tokio::io::duplex(64);
        let started = Instant::now();
        let mut stream = Transport::new(Box::new(ours) as Box<dyn SocketStream>, LIMIT, Arc::default());
        for byte in 0..3 {
            tokio::time::sleep(LIMIT / 2).await;
            theirs.write_all(&[byte]).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), byte);
        }
        // The other end has stopped reading.
        let error = loop {
            if let Err(error) = stream.write_all(&[0; 16]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= LIMIT / 2 * 3 + LIMIT);
    }

    #[tokio::test]
    async fn a_half_closed_connection_continues_briefly_for_a_request_in_flight() {
        let activity = Arc::new(Activity::default());
        let (ours, theirs) = tokio::io::duplex(64);
        let mut stream =
            Transport::new(Box::new(ours) as Box<dyn SocketStream>, Duration::from_secs(60), Arc::clone(&activity));
        drop(theirs);
        let started = Instant::now();
        let request = activity.begin();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(started.elapsed() >= HALF_CLOSED_LIMIT);
        drop(request);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn exactly_the_skipped_bytes_are_discarded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, (duplex, mut other)) = (listener.accept().await.unwrap().0, tokio::io::duplex(1 << 20));
        let streams: [(Box<dyn SocketStream>, &mut (dyn AsyncWrite + Unpin)); 2] =
            [(Box::new(tcp), &mut client), (Box::new(duplex), &mut other)];
        for (stream, client) in streams {
            let mut stream = Transport::new(stream, Duration::from_secs(60), Arc::default());
            let received = stream.received();
            for length in [1, 5000, 200_000] {
                let sent: Vec<u8> = (0..length + 200).map(|i| (i % 251) as u8).collect();
                client.write_all(&sent).await.unwrap();
                let mut head = [0; 100];
                stream.read_exact(&mut head).await.unwrap();
                received.skip(length as u64);
                stream.read_exact(&mut vec![0; length]).await.unwrap();
                let mut next = [0; 100];
                stream.read_exact(&mut next).await.unwrap();
                assert_eq!((&head[..], &next[..]), (&sent[..100], &sent[length + 100..]));
                assert_eq!(received.0.skip.load(Ordering::Relaxed), 0);
            }
        }
    }

    #[tokio::test]
    async fn the_first_read_of_a_request_is_small() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut stream =
            Transport::new(Box::new(ours) as Box<dyn SocketStream>, Duration::from_secs(60), Arc::default());
        let mut buffer = vec![0; 1 << 17];
        for _ in 0..2 {
            theirs.write_all(&buffer).await.unwrap();
            assert_eq!(stream.read(&mut buffer).await.unwrap(), FIRST_READ);
            assert_eq!(stream.read(&mut buffer).await.unwrap(), buffer.len() - FIRST_READ);
            stream.write_all(b"answer").await.unwrap();
        }
    }
}
