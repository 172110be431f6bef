//! The byte stream of one connection, below HTTP: when it times out, which bytes it discards unread, and how it is
//! closed.
//!
//! The body of a refused request must still be received, because a client does not read the response while it is
//! sending. Under overload most of the incoming bytes are of this kind. On plain TCP the kernel drops them without
//! copying ([`ReceiveState::skip`]). This works only for bytes that were not read together with the head of the
//! request, so the first read of a request is small.
//!
//! If the in-flight budget is used up, most requests are refused here ([`RefuseEarly`]), and HTTP does not see them.
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
use tokio::time::{Instant, Sleep};

use super::activity::Activity;
use super::early_answer::{EarlyAnswer, EarlyAnswerInProgress, EarlyRefusals, RefuseEarly};
use super::malformed;
use super::request_boundary::PREFACE;
use super::stream::SocketStream;

/// The size limit of the first read of a request, in bytes: a head, and a body that is not worth refusing unread.
pub const FIRST_READ: usize = 2 << 10;

/// Limits of a lingering close, as nginx calls it: how long incoming bytes are discarded in total, how long without any
/// arriving, and how many of them.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_IDLE: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 1 << 30;

/// The size of one read of bytes that are discarded.
const SCRATCH: usize = 16 << 10;

/// How long requests in flight continue after the client has closed its sending side. The client may have closed only
/// that side; more often it is gone, and the work for it should end soon.
const HALF_CLOSED_LIMIT: Duration = Duration::from_secs(1);

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
    /// The length of the body of the current request plus one, or 0 if it is not known.
    body: AtomicU64,
}

impl ReceiveState {
    /// Discards the next `bytes` bytes. None of them may have been read yet.
    pub fn skip(&self, bytes: u64) {
        self.0.skip.store(bytes, Ordering::Relaxed);
    }

    /// Records that HTTP has read the head of a request whose body has `length` bytes, if that is known.
    pub fn body_begins(&self, length: Option<u64>) {
        self.0.body.store(length.map_or(0, |length| length.saturating_add(1)), Ordering::Relaxed);
    }

    /// Returns the length of the body of the current request, if it is known.
    fn body_length(&self) -> Option<u64> {
        self.0.body.load(Ordering::Relaxed).checked_sub(1)
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
    /// The refusals of requests that HTTP does not see, if there may be any.
    early: Option<EarlyRefusals>,
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
            early: None,
        }
    }

    /// Lets `refusal` answer requests before HTTP sees them, until HTTP has seen none for `limit`.
    #[must_use]
    pub fn refuse_early(self, refusal: Box<dyn RefuseEarly>, limit: Duration) -> Self {
        Self { early: Some(EarlyRefusals::new(refusal, limit)), ..self }
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

impl Transport<Box<dyn SocketStream>> {
    /// Reads the first bytes of a request, and delivers them to HTTP unless the request is refused. Returns whether it
    /// was refused.
    fn poll_read_first(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let body = self.received.body_length();
        let is_alone = !self.received.0.multiplexed.load(Ordering::Relaxed) && self.activity.in_flight() == 0;
        let early = self.early.as_mut().filter(|_| is_alone);
        let early = early.and_then(|early| early.are_possible(body).then_some(&*early));
        let (stream, first_length) = (&mut self.stream, &mut self.first);
        let read = FIRST_READ_BYTES.with_borrow_mut(|room| -> Poll<io::Result<Option<EarlyAnswer>>> {
            let most = buffer.remaining().min(FIRST_READ);
            let mut first = ReadBuf::new(room.get_mut(..most).unwrap_or_default());
            ready!(Pin::new(stream).poll_read(context, &mut first))?;
            let first = first.filled();
            let answer = early.filter(|_| !first.is_empty()).and_then(|early| early.refuse(first));
            if answer.is_none() {
                buffer.put_slice(first);
                *first_length = Some(first.len());
            }
            Poll::Ready(Ok(answer))
        });
        let answer = ready!(read)?;
        let is_refused = answer.is_some();
        if let (Some(answer), Some(early)) = (answer, self.early.as_mut()) {
            early.in_progress = Some(EarlyAnswerInProgress { answer, sent: 0, _request: self.activity.begin() });
        }
        Poll::Ready(Ok(is_refused))
    }

    /// Sends the response to a request that HTTP does not see, and discards the rest of the request.
    fn poll_answer_early(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(mut current) = self.early.as_mut().and_then(|early| early.in_progress.take()) else {
            return Poll::Ready(Ok(()));
        };
        let result = self.poll_answer(context, &mut current);
        match (&result, self.early.as_mut()) {
            (Poll::Pending, Some(early)) => early.in_progress = Some(current),
            _ => self.received.body_ended(),
        }
        result
    }

    fn poll_answer(&mut self, context: &mut Context<'_>, current: &mut EarlyAnswerInProgress) -> Poll<io::Result<()>> {
        while let Some(rest) = current.answer.bytes.get(current.sent..).filter(|rest| !rest.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(context, rest);
            match ready!(self.wrote(context, written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => current.sent += length,
            }
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        while current.answer.unread > 0 {
            let discarded = self.poll_discard(context, current.answer.unread);
            match ready!(self.check(context, discarded))? {
                // HTTP will see the end of the stream as well.
                0 => break,
                bytes => current.answer.unread = current.answer.unread.saturating_sub(bytes as u64),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Discards at most `most` incoming bytes and returns how many there were, 0 at the end of the stream.
    fn poll_discard(&mut self, context: &mut Context<'_>, most: u64) -> Poll<io::Result<usize>> {
        if let Some(skipped) = self.stream.poll_skip(context, most) {
            return skipped;
        }
        let mut scratch = [MaybeUninit::uninit(); SCRATCH];
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(SCRATCH);
        let mut scratch = ReadBuf::uninit(scratch.get_mut(..most).unwrap_or_default());
        let read = Pin::new(&mut self.stream).poll_read(context, &mut scratch);
        read.map_ok(|()| scratch.filled().len())
    }

    /// Reports bytes that were discarded to HTTP as read, if there are any.
    fn poll_skipped(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
        let piece = self.skipped.min(buffer.remaining());
        buffer.initialize_unfilled_to(piece);
        buffer.advance(piece);
        self.skipped -= piece;
        Poll::Ready(Ok(()))
    }

    /// Records that HTTP has received `bytes`.
    fn deliver(&mut self, bytes: &[u8]) {
        if let Some(early) = &mut self.early
            && early.deliver(bytes, self.moved)
        {
            // HTTP has not read the head yet.
            self.received.body_begins(None);
        }
    }
}

impl AsyncRead for Transport<Box<dyn SocketStream>> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        ready!(self.poll_skipped(context, buffer))?;
        if buffer.filled().len() > before {
            self.deliver(buffer.filled().get(before..).unwrap_or_default());
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_answer_early(context))?;
        let read = loop {
            if !self.at_request_start {
                self.first = None;
                break Pin::new(&mut self.stream).poll_read(context, buffer);
            }
            match self.poll_read_first(context, buffer) {
                Poll::Ready(Ok(true)) => {
                    self.received.0.unfinished.store(true, Ordering::Relaxed);
                    ready!(self.poll_answer_early(context))?;
                }
                read => break read.map_ok(|_| ()),
            }
        };
        let came = buffer.filled().len() - before;
        if came > 0 {
            self.at_request_start &= came <= PREFACE;
            self.received.0.unfinished.store(true, Ordering::Relaxed);
        } else if matches!(read, Poll::Ready(Ok(()))) && room > 0 {
            ready!(self.poll_end(context));
        }
        let read = self.check(context, read);
        self.deliver(buffer.filled().get(before..).unwrap_or_default());
        read
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
            ready!(self.poll_answer_early(context))?;
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
        loop {
            let discarded = self.poll_discard(context, u64::MAX);
            let Some(closing) = self.closing.as_mut() else { return Poll::Ready(()) };
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
    use tokio::net::{TcpListener, TcpStream};

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
    /// Refuses every request whose first bytes begin with "refuse", with a body of 3000 bytes.
    struct RefuseAll;

    impl RefuseEarly for RefuseAll {
        fn may_refuse(&self) -> bool {
            true
        }

        fn refuse(&self, first: &[u8]) -> Option<EarlyAnswer> {
            let unread = 3006_u64.saturating_sub(first.len() as u64);
            first.starts_with(b"refuse").then(|| EarlyAnswer { bytes: b"refused".to_vec(), unread })
        }
    }

    #[tokio::test]
    async fn http_sees_no_byte_of_a_request_that_is_refused_early_and_all_bytes_of_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, (duplex, mut other)) = (listener.accept().await.unwrap().0, tokio::io::duplex(1 << 20));
        trait Client: AsyncRead + AsyncWrite + Unpin {}
        impl<S: AsyncRead + AsyncWrite + Unpin> Client for S {}
        let streams: [(Box<dyn SocketStream>, &mut dyn Client); 2] =
            [(Box::new(tcp), &mut client), (Box::new(duplex), &mut other)];
        for (stream, client) in streams {
            let activity = Arc::new(Activity::default());
            let mut stream = Transport::new(stream, Duration::from_secs(60), Arc::clone(&activity))
                .refuse_early(Box::new(RefuseAll), Duration::from_secs(60));
            let received = stream.received();
            let refused = [b"refuse".to_vec(), vec![b'x'; 3000]].concat();
            let head = b"GET / HTTP/1.1\r\n\r\n";
            for round in 0..3 {
                client.write_all(&[&refused[..], head].concat()).await.unwrap();
                let mut seen = [0; 18];
                stream.read_exact(&mut seen).await.unwrap();
                assert_eq!(&seen, head);
                let mut answer = [0; 7];
                client.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"refused");
                assert_eq!(activity.in_flight(), 0);
                // The rest is the body of a request, which is not refused, whatever it looks like.
                received.body_begins(Some(if round < 2 { 6 } else { 7 }));
                stream.write_all(b"100 Continue").await.unwrap();
                client.read_exact(&mut [0; 12]).await.unwrap();
                client.write_all(b"refuse").await.unwrap();
                let mut seen = [0; 6];
                stream.read_exact(&mut seen).await.unwrap();
                assert_eq!(&seen, b"refuse");
            }
        }
    }
}
