//! The threads that serve connections: each has its own runtime, and a connection stays on its thread.
//!
//! With one runtime for all threads, an incoming request also wakes a second thread in case there is more to do, and
//! the state of connections moves between the caches of CPU cores. Here a request touches nothing that threads share.
//! Work that would delay the other connections of a thread runs on [`crate::workers`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::listen::{DetachedSocket, Socket};

/// The socket threads, one for each CPU that the process may use. Dropping them closes all connections.
pub struct SocketThreads(Vec<SocketThread>);

struct SocketThread {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    /// Ends the thread when dropped.
    _stop: oneshot::Sender<()>,
}

/// An open connection, counted for its thread until this is dropped.
struct OpenConnection(Arc<AtomicUsize>);

impl SocketThreads {
    /// Starts the threads. Each calls `before_park` before it waits for its sockets.
    ///
    /// # Errors
    /// If the system does not provide the threads or their descriptors.
    pub fn start(before_park: impl Fn() + Clone + Send + Sync + 'static) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..count).map(|n| {
            let runtime = Builder::new_current_thread().enable_all().on_thread_park(before_park.clone()).build()?;
            let handle = runtime.handle().clone();
            let (stop, stopped) = oneshot::channel::<()>();
            thread::Builder::new().name(format!("sockets-{n}")).spawn(move || {
                let _ = runtime.block_on(stopped);
            })?;
            Ok(SocketThread { runtime: handle, connections: Arc::default(), _stop: stop })
        });
        threads.collect::<io::Result<_>>().map(Self)
    }

    /// Runs `serve` on the thread that has the fewest connections.
    pub fn spawn<F: Future<Output = ()> + Send>(
        &self,
        socket: Socket,
        serve: impl FnOnce(Socket) -> F + Send + 'static,
    ) {
        let Some(thread) = self.0.iter().min_by_key(|thread| thread.connections.load(Ordering::Relaxed)) else {
            return;
        };
        thread.connections.fetch_add(1, Ordering::Relaxed);
        let open = OpenConnection(Arc::clone(&thread.connections));
        // The socket is registered with the accepting runtime and must move to the runtime of the thread.
        let socket = socket.detach();
        thread.runtime.spawn(async move {
            let _open = open;
            match socket.and_then(DetachedSocket::attach) {
                Ok(socket) => serve(socket).await,
                Err(error) => tracing::debug!(%error, "a connection was lost"),
            }
        });
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_over_threads_and_closed_with_them() {
        let threads = SocketThreads::start(|| {}).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut clients = Vec::new();
        for _ in 0..2 * threads.0.len() {
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let socket = Socket::Tcp(listener.accept().await.unwrap().0);
            threads.spawn(socket, async |mut stream: Socket| {
                while stream.read_u8().await.is_ok() {
                    let name = thread::current().name().unwrap().to_owned();
                    stream.write_all(format!("{name:<16}").as_bytes()).await.unwrap();
                }
            });
            clients.push(client);
        }
        let mut first = Vec::new();
        for round in 0..3 {
            let mut names = Vec::new();
            for client in &mut clients {
                let mut name = [0; 16];
                client.write_all(b"?").await.unwrap();
                client.read_exact(&mut name).await.unwrap();
                names.push(String::from_utf8(name.to_vec()).unwrap());
            }
            if round == 0 {
                first = names.clone();
                names.sort();
                let each: Vec<usize> = names.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
                assert_eq!(each, vec![2; threads.0.len()], "{names:?}");
            } else {
                assert_eq!(names, first);
            }
        }
        drop(threads);
        for client in &mut clients {
            assert!(!matches!(client.read(&mut [0; 16]).await, Ok(1..)));
        }
    }
}
