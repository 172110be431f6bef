//! Listening sockets and the sockets of connections, over TCP and Unix sockets.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};

#[cfg(unix)]
use super::socket_file::SocketFile;
use super::stream::limit_unsent;
use crate::server::observe::peer::Peer;

/// The sockets that a server listens on.
pub struct Listeners {
    /// The file of the Unix socket. It is dropped before the socket is closed, so that the path cannot belong to
    /// another server when the file is removed.
    #[cfg(unix)]
    _file: Option<SocketFile>,
    sockets: Vec<Listener>,
}

/// One socket that the server listens on.
pub enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

/// The socket of one connection.
pub enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// The socket of a connection while it moves from one runtime to another.
pub enum DetachedSocket {
    Tcp(std::net::TcpStream),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixStream),
}

impl From<TcpListener> for Listeners {
    fn from(listener: TcpListener) -> Self {
        vec![Listener::Tcp(listener)].into()
    }
}

impl From<Vec<Listener>> for Listeners {
    fn from(sockets: Vec<Listener>) -> Self {
        Self {
            #[cfg(unix)]
            _file: None,
            sockets,
        }
    }
}

impl Listeners {
    /// Accepts the next connection on any of the sockets.
    ///
    /// # Errors
    /// If the system fails to accept a connection.
    pub async fn accept(&self) -> io::Result<(Socket, Peer)> {
        poll_fn(|context| {
            let mut polls = self.sockets.iter().map(|listener| listener.poll_accept(context));
            polls.find(Poll::is_ready).unwrap_or(Poll::Pending)
        })
        .await
    }
}

impl Listeners {
    /// Returns the listener of a Unix socket whose file is removed with it.
    #[cfg(unix)]
    pub fn with_file(socket: Listener, file: SocketFile) -> Self {
        Self { _file: Some(file), sockets: vec![socket] }
    }

    /// Returns the address of the first socket, if it is a TCP socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.sockets.first()? {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            #[cfg(unix)]
            Listener::Unix(_) => None,
        }
    }

    /// Returns where each socket listens, such as `http://127.0.0.1:5000` or `unix:/run/embedding-server.sock`.
    /// `prefix` is the prefix of all paths.
    pub fn places(&self, scheme: &str, prefix: &str) -> Vec<String> {
        let place = |listener: &Listener| match listener {
            Listener::Tcp(listener) => Some(format!("{scheme}://{}{prefix}", listener.local_addr().ok()?)),
            #[cfg(unix)]
            Listener::Unix(listener) => {
                let address = listener.local_addr().ok()?;
                Some(format!("unix:{}", address.as_pathname()?.display()))
            }
        };
        self.sockets.iter().filter_map(place).collect()
    }
}

impl Listener {
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        match self {
            Self::Tcp(listener) => listener.poll_accept(context).map_ok(|(stream, address)| {
                // Each response is a single write, so waiting for more data to fill a packet would only delay it.
                let _ = stream.set_nodelay(true);
                limit_unsent(&stream);
                (Socket::Tcp(stream), Peer::Address(address))
            }),
            #[cfg(unix)]
            Self::Unix(listener) => {
                listener.poll_accept(context).map_ok(|(stream, _)| (Socket::Unix(stream), Peer::Local))
            }
        }
    }
}

impl Socket {
    /// Deregisters the socket from the current runtime.
    ///
    /// # Errors
    /// If the system refuses it.
    pub fn detach(self) -> io::Result<DetachedSocket> {
        Ok(match self {
            Self::Tcp(stream) => DetachedSocket::Tcp(stream.into_std()?),
            #[cfg(unix)]
            Self::Unix(stream) => DetachedSocket::Unix(stream.into_std()?),
        })
    }

    /// Waits for the first byte without consuming it. Returns `None` at the end of the stream, and for Unix sockets,
    /// which cannot be peeked.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn first_byte(&self) -> io::Result<Option<u8>> {
        match self {
            Self::Tcp(stream) => {
                let mut first = [0];
                Ok((stream.peek(&mut first).await? > 0).then_some(first[0]))
            }
            #[cfg(unix)]
            Self::Unix(_) => Ok(None),
        }
    }
}

impl DetachedSocket {
    /// Registers the socket with the current runtime.
    ///
    /// # Errors
    /// If the system refuses it.
    pub fn attach(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
            #[cfg(unix)]
            Self::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
        })
    }
}

/// Calls the same method of the stream inside a [`Socket`].
macro_rules! forward {
    ($socket:expr, $method:ident($($argument:expr),*)) => {
        match $socket.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            #[cfg(unix)]
            Socket::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_read(context, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self, poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown(context))
    }
}
