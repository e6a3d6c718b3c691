use std::net::SocketAddr;

use quinn::Endpoint;

use super::kept::SESSION_BYTES;
use super::*;
use crate::env::Env;
use crate::quic::{QuicParams, client_config, client_endpoint, server_endpoint};
use crate::system::system_env;
use crate::testing::Pki;
use crate::tls;

fn name(n: u8) -> Vec<u8> {
    vec![n; NAME_BYTES]
}

#[test]
fn each_is_good_once_and_the_oldest_give_way() {
    let tickets = Tickets::new(3);
    for n in 0..5 {
        assert!(tickets.put(name(n), vec![n]));
    }
    assert_eq!((tickets.len(), tickets.take(&name(1))), (3, None));
    assert_eq!((tickets.take(&name(3)), tickets.take(&name(3))), (Some(vec![3]), None));
    assert!(!tickets.put(name(9), vec![0; SESSION_BYTES + 1]));
    assert!(!tickets.put(vec![1, 2], vec![0]));
    // Used ones leave no trace, however many there are.
    for n in 0..=255 {
        tickets.put(name(n), vec![n]);
        tickets.take(&name(n));
    }
    assert!(tickets.is_empty() && tickets.lock().pop().is_none());
    let none = Tickets::new(0);
    assert!(!none.put(name(1), vec![1]) && !none.can_cache());
}

#[test]
fn a_stop_in_order_leaves_them_to_the_next_start_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("e1.tickets");
    let rng = Entropy::seeded(1);
    let (key, other) = (ResetKey::random(&rng), ResetKey::random(&rng));
    let filled = || {
        let tickets = Tickets::new(10);
        (1..4).for_each(|n| assert!(tickets.put(name(n), vec![n; 200])));
        tickets.take(&name(2));
        tickets
    };
    let before = filled();
    assert_eq!(before.leave(&file, &key, "a", &rng).unwrap(), 2);
    assert!(before.is_empty());
    let kept = fs::read(&file).unwrap();
    assert!(!kept.windows(8).any(|part| part == [3; 8]), "what is in it can't be read");
    let next = Tickets::new(10);
    assert_eq!(next.take_up(&file, &key, "a").unwrap(), 2);
    assert!(!file.exists());
    assert_eq!((next.take(&name(3)), next.take(&name(2))), (Some(vec![3; 200]), None));
    assert_eq!(next.take_up(&file, &key, "a").unwrap(), 0, "where there is none, nothing happens");

    for (key, made_for, damage) in [(&other, "a", None), (&key, "b", None), (&key, "a", Some(0)), (&key, "a", Some(60))]
    {
        let mut bytes = kept.clone();
        if let Some(at) = damage {
            bytes[at] ^= 1;
        }
        fs::write(&file, bytes).unwrap();
        let next = Tickets::new(10);
        assert!(matches!(next.take_up(&file, key, made_for), Err(TicketsError::Unreadable)));
        assert!(next.is_empty() && !file.exists());
    }
    for length in 0..40 {
        fs::write(&file, &kept[..length]).unwrap();
        assert!(Tickets::new(10).take_up(&file, &key, "a").is_err());
    }
}

#[test]
fn a_file_of_an_earlier_version_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("e1.tickets");
    let rng = Entropy::seeded(1);
    let key = ResetKey::random(&rng);
    // One after the other: name, length, session.
    let plain = [&name(1)[..], &[0, 3], b"abc", &name(2), &[1, 94], &[5; 350], &name(3), &[3, 0], &[6; 768]].concat();
    let sealed = seal(plain, &key, "a", &rng).unwrap();
    assert_eq!(sealed[..8], *b"terntk\0\x01");
    fs::write(&file, sealed).unwrap();
    let tickets = Tickets::new(10);
    assert_eq!(tickets.take_up(&file, &key, "a").unwrap(), 2, "and none that is too large");
    assert_eq!(tickets.take(&name(1)).as_deref(), Some(b"abc".as_slice()));
    assert_eq!(tickets.take(&name(2)), Some(vec![5; 350]));
}

/// A server that says how the connection's first stream came, and echoes it.
fn serve(env: &Env, pki: &Pki, tickets: &Arc<Tickets>) -> Endpoint {
    let mut tls = (*tls::server_tls(&pki.identity(), &[b"t"], env.clock.clone()).unwrap()).clone();
    tickets.offer(&mut tls);
    let server = server_endpoint(env, "127.0.0.1:0".parse().unwrap(), Arc::new(tls), &QuicParams::edge()).unwrap();
    let (accepting, tasks) = (server.clone(), env.tasks.clone());
    env.tasks.spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tasks.spawn(async move {
                let Ok((connection, _)) = incoming.accept().unwrap().into_0rtt() else {
                    panic!("a server has its connection")
                };
                while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                    let how = if recv.is_0rtt() { "early " } else { "late " };
                    let got = recv.read_to_end(1024).await.unwrap();
                    send.write_all(&[how.as_bytes(), &got].concat()).await.unwrap();
                    send.finish().unwrap();
                }
            });
        }
    });
    server
}

/// What comes back, and whether it could be sent early and was taken so.
async fn ask(env: &Env, resuming: &Resuming, at: SocketAddr) -> (String, Option<bool>) {
    let client = client_endpoint(env, "127.0.0.1:0".parse().unwrap()).unwrap();
    let config = client_config(env, resuming.towards(&at.to_string()), &QuicParams::client()).unwrap();
    let connecting = client.connect_with(config, at, "localhost").unwrap();
    let said = |connection: quinn::Connection| async move {
        let (mut send, recv) = connection.open_bi().await?;
        send.write_all(b"hello").await?;
        send.finish().unwrap();
        Ok::<_, quinn::WriteError>(recv)
    };
    let (connection, recv, taken) = match connecting.into_0rtt() {
        Ok((connection, taken)) => {
            let early = said(connection.clone()).await;
            let taken = taken.await;
            let recv = if taken { early.unwrap() } else { said(connection.clone()).await.unwrap() };
            (connection, recv, Some(taken))
        }
        Err(connecting) => {
            let connection = connecting.await.unwrap();
            let recv = said(connection.clone()).await.unwrap();
            (connection, recv, None)
        }
    };
    let answer = async |mut recv: quinn::RecvStream| String::from_utf8(recv.read_to_end(1024).await.unwrap()).unwrap();
    let first = answer(recv).await;
    // Tickets come right behind the handshake.
    assert_eq!(answer(said(connection.clone()).await.unwrap()).await, "late hello");
    connection.close(0u32.into(), b"");
    client.wait_idle().await;
    (first, taken)
}

#[tokio::test]
async fn the_second_connection_speaks_with_its_first_packet_and_a_server_that_forgot_costs_nothing_else() {
    let env = system_env().unwrap();
    let pki = Pki::new();
    let tickets = Tickets::new(100);
    let server = serve(&env, &pki, &tickets);
    let at = server.local_addr().unwrap();
    let resuming = Resuming::new(tls::client_tls(pki.ca_pem.as_bytes(), &[b"t"], env.clock.clone()).unwrap());
    assert_eq!(ask(&env, &resuming, at).await, ("late hello".into(), None));
    assert_eq!(tickets.len(), TICKETS_PER_HANDSHAKE);
    for _ in 0..3 {
        assert_eq!(ask(&env, &resuming, at).await, ("early hello".into(), Some(true)));
    }
    *tickets.lock() = Ring::default();
    assert_eq!(ask(&env, &resuming, at).await, ("late hello".into(), Some(false)));
    // Another server of the same name is none that this ticket is for.
    let other = serve(&env, &pki, &Tickets::new(100));
    assert_eq!(ask(&env, &resuming, other.local_addr().unwrap()).await, ("late hello".into(), None));
    assert_eq!(ask(&env, &resuming, at).await, ("early hello".into(), Some(true)));
}

#[tokio::test]
async fn a_handshake_leaves_three_tickets_of_73_bytes_and_two_names() {
    let env = system_env().unwrap();
    let pki = Pki::new();
    let tickets = Tickets::new(100);
    let server = serve(&env, &pki, &tickets);
    let resuming = Resuming::new(tls::client_tls(pki.ca_pem.as_bytes(), &[b"t"], env.clock.clone()).unwrap());
    ask(&env, &resuming, server.local_addr().unwrap()).await;
    let lengths: Vec<_> = std::mem::take(&mut *tickets.lock()).drain().map(|(_, session)| session.len()).collect();
    assert_eq!(lengths, [73 + "localhost".len() + "t".len(); 3]);
}

#[tokio::test]
async fn a_server_that_offers_none_is_connected_to_as_ever() {
    let env = system_env().unwrap();
    let pki = Pki::new();
    let server = serve(&env, &pki, &Tickets::new(0));
    let resuming = Resuming::new(tls::client_tls(pki.ca_pem.as_bytes(), &[b"t"], env.clock.clone()).unwrap());
    for _ in 0..2 {
        assert_eq!(ask(&env, &resuming, server.local_addr().unwrap()).await, ("late hello".into(), None));
    }
}
