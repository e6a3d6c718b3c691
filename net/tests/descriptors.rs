//! What a listener does when the process has no file descriptor left. A test of its own process: it uses them up.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tern_net::system::system_env;

/// So many descriptors are few enough to be used up at once.
const DESCRIPTORS: u64 = 200;
const LONG: Duration = Duration::from_secs(30);

#[test]
fn without_a_descriptor_left_clients_are_closed_at_once_and_served_again_later() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(DESCRIPTORS);
    setrlimit(Resource::Nofile, limit).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (taken, takes) = std::sync::mpsc::channel();
    let at = runtime.block_on(async {
        let env = system_env().unwrap();
        let mut acceptor = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let at = acceptor.local_addr();
        env.tasks.spawn(async move {
            loop {
                // Nothing but an error of this test's own doing may end it.
                let (stream, _) = acceptor.accept().await.expect("a connection, however few descriptors are left");
                taken.send(stream).unwrap();
            }
        });
        at
    });
    let client = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let early: Vec<Socket> = (0..6).map(|_| client()).collect();
    let mut used_up = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        used_up.push(file);
    }
    assert!(used_up.len() > 20);
    for socket in early {
        socket.connect(&at.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(LONG)).unwrap();
        // Closed or reset, but told.
        match stream.read(&mut [0]) {
            Ok(read) => assert_eq!(read, 0),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
        }
        // Its descriptor is not to be found free by the next accept.
        std::mem::forget(stream);
    }
    assert!(takes.try_recv().is_err(), "none of them was served");
    used_up.clear();
    let socket = client();
    socket.connect(&at.into()).unwrap();
    takes.recv_timeout(LONG).expect("the next one is served");
    runtime.shutdown_background();
}
