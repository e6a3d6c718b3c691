//! Edge links: [`Up`] and [`Down`] to node frames and back.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::{convert, node_v1 as node, v1};
use crate::codes::{Code, Refusal};
use crate::edge_api::{Ack, Down, DownBody, HeldAck, MembershipOffer, Named, Page, Push, RowState, SendRequest, Up};
use crate::entry::Entry;
use crate::ids::{Heads, Identity, Origin, Rev};
use crate::receipt::RECEIPT_BYTES;

fn bad(what: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::BadFrame, what.to_string())
}

/// Heads on the node wire.
pub fn heads_to_wire(heads: &Heads) -> Vec<node::Head> {
    heads.iter().map(|(o, s)| node::Head { origin: Some((*o).into()), seq: *s }).collect()
}

/// Heads from the node wire.
pub fn heads_from_wire(heads: Vec<node::Head>) -> Result<Heads, Refusal> {
    heads.into_iter().map(|h| Ok((origin(h.origin)?, h.seq))).collect()
}

/// An origin from the node wire.
pub fn origin(o: Option<node::Origin>) -> Result<Origin, Refusal> {
    o.ok_or_else(|| bad("origin is missing"))?.try_into()
}

/// Entries from their stored form.
pub fn entries_from_wire(entries: Vec<Bytes>) -> Result<Vec<Arc<Entry>>, Refusal> {
    entries.into_iter().map(|b| Entry::decode(b).map(Arc::new).map_err(bad)).collect()
}

/// For an edge link, towards the core.
pub fn up_to_wire(up: Up) -> node::Up {
    use node::up::Body;
    match up {
        Up::Open { conn, req, user, install, hello, address, transport, token_expires_ms, token_issued_ms } => {
            node::Up {
                conn,
                req: 0,
                body: Some(Body::Open(node::Open {
                    user: user.as_str().to_owned(),
                    install: install.as_str().to_owned(),
                    hello: hello.encode_to_vec().into(),
                    address,
                    transport: transport.to_owned(),
                    req,
                    token_expires_ms,
                    token_issued_ms,
                })),
            }
        }
        Up::Send { conn, req, send } => {
            let (was, receipt) = match send.offer {
                Some((place, receipt)) => (Some(place.into()), receipt),
                None => (None, Bytes::new()),
            };
            let (author, cut) = send.membership.map(|m| (m.author, m.cut)).unzip();
            let body = node::Send {
                conversation: Bytes::copy_from_slice(&send.conversation.0),
                n: send.n,
                floor: send.floor,
                seen_hlc: send.seen_hlc,
                kind: send.kind,
                body: send.body,
                wall_ms: send.wall_ms,
                was,
                receipt,
                peer: send.peer.map_or_else(String::new, |p| p.as_str().to_owned()),
                author_user: author.as_ref().map_or_else(String::new, |(user, _)| user.as_str().to_owned()),
                author_install: author.as_ref().map_or_else(String::new, |(_, install)| install.as_str().to_owned()),
                cut: cut.as_ref().map_or_else(Vec::new, heads_to_wire),
                named: send.named.map(|named| node::Named {
                    place: Some(named.place.into()),
                    user: named.by.user.as_str().to_owned(),
                    install: named.by.install.as_str().to_owned(),
                    n: named.by.n,
                }),
            };
            node::Up { conn, req, body: Some(Body::Send(body)) }
        }
        Up::Frame { conn, frame } => node::Up { conn, req: 0, body: Some(Body::Frame(frame.encode_to_vec().into())) },
        Up::Attach { conn, user, install, token_issued_ms } => {
            let (user, install) = (user.as_str().to_owned(), install.as_str().to_owned());
            node::Up { conn, req: 0, body: Some(Body::Attach(node::Attach { user, install, token_issued_ms })) }
        }
        Up::Resume { conn, user, install, token_issued_ms, order } => {
            let (user, install) = (user.as_str().to_owned(), install.as_str().to_owned());
            node::Up { conn, req: 0, body: Some(Body::Resume(node::Resume { user, install, token_issued_ms, order })) }
        }
        Up::Close { conn } => node::Up { conn, req: 0, body: Some(Body::Close(node::Close {})) },
    }
}

/// The name of a transport; one that this version does not know is shown as the plainest.
fn transport(name: &str) -> &'static str {
    ["quic", "ws", "poll"].into_iter().find(|known| *known == name).unwrap_or("tcp")
}

/// From an edge link, at the core.
pub fn up_from_wire(up: node::Up) -> Result<Up, Refusal> {
    use node::up::Body;
    let conn = up.conn;
    Ok(match up.body.ok_or_else(|| bad("an empty Up"))? {
        Body::Open(open) => Up::Open {
            conn,
            req: open.req,
            user: convert::user(&open.user)?,
            install: convert::install(&open.install)?,
            hello: Box::new(v1::Hello::decode(open.hello).map_err(bad)?),
            address: open.address,
            transport: transport(&open.transport),
            token_expires_ms: open.token_expires_ms,
            token_issued_ms: open.token_issued_ms,
        },
        Body::Send(send) => Up::Send {
            conn,
            req: up.req,
            send: SendRequest {
                conversation: convert::conversation(&send.conversation)?,
                peer: if send.peer.is_empty() { None } else { Some(convert::user(&send.peer)?) },
                n: send.n,
                floor: send.floor,
                seen_hlc: send.seen_hlc,
                kind: send.kind,
                // On its own: it may wait for long, and would keep all that was read with it.
                body: Bytes::copy_from_slice(&send.body),
                wall_ms: send.wall_ms,
                offer: match send.was {
                    Some(was) => Some((was.try_into()?, send.receipt)),
                    None => None,
                },
                membership: if send.author_user.is_empty() {
                    None
                } else {
                    let author = (convert::user(&send.author_user)?, convert::install(&send.author_install)?);
                    Some(Box::new(MembershipOffer { author, cut: heads_from_wire(send.cut)? }))
                },
                named: send.named.map(named_from_wire).transpose()?.map(Box::new),
            },
        },
        Body::Frame(bytes) => Up::Frame { conn, frame: v1::Frame::decode(bytes).map_err(bad)? },
        Body::Attach(attach) => Up::Attach {
            conn,
            user: convert::user(&attach.user)?,
            install: convert::install(&attach.install)?,
            token_issued_ms: attach.token_issued_ms,
        },
        Body::Resume(resume) => Up::Resume {
            conn,
            user: convert::user(&resume.user)?,
            install: convert::install(&resume.install)?,
            token_issued_ms: resume.token_issued_ms,
            order: resume.order,
        },
        Body::Close(_) => Up::Close { conn },
    })
}

fn named_from_wire(named: node::Named) -> Result<Named, Refusal> {
    let place = named.place.ok_or_else(|| bad("place is missing"))?.try_into()?;
    let (user, install) = (convert::user(&named.user)?, convert::install(&named.install)?);
    Ok(Named { place, by: Identity { user, install, n: named.n } })
}

fn row_from_wire(row: node::RowState) -> Result<RowState, Refusal> {
    Ok(RowState {
        state: row.state,
        generation: row.generation,
        from: heads_from_wire(row.from)?,
        read: heads_from_wire(row.read)?,
        peer_read: heads_from_wire(row.peer_read)?,
    })
}

/// For an edge link, towards the edge.
pub fn down_to_wire(down: Down) -> node::Down {
    use node::down::Body;
    let conn = down.conn;
    let (req, body) = match down.body {
        DownBody::Ack { req, ack } => (
            req,
            Body::Ack(node::Ack {
                place: Some(ack.place.into()),
                first: ack.first.map(Into::into),
                receipt: Bytes::copy_from_slice(&ack.receipt),
                also: ack
                    .also
                    .iter()
                    .map(|h| node::Held {
                        n: h.n,
                        place: Some(h.place.into()),
                        first: h.first.map(Into::into),
                        receipt: Bytes::copy_from_slice(&h.receipt),
                        cut: heads_to_wire(&h.cut),
                    })
                    .collect(),
                receipt_refused: ack.receipt_refused,
                cut: heads_to_wire(&ack.cut),
            }),
        ),
        DownBody::Push(push) => (
            0,
            Body::Push(node::Push {
                conversation: Bytes::copy_from_slice(&push.conversation.0),
                entries: push.entries.iter().map(|e| e.to_bytes()).collect(),
                heads: heads_to_wire(&push.heads),
                prev_rev: push.prev_rev.0,
                rev: push.rev.0,
                peer: push.peer.as_ref().map_or_else(String::new, |p| p.as_str().to_owned()),
                row: push.row.as_ref().map(|row| node::RowState {
                    state: row.state,
                    generation: row.generation,
                    from: heads_to_wire(&row.from),
                    read: heads_to_wire(&row.read),
                    peer_read: heads_to_wire(&row.peer_read),
                }),
            }),
        ),
        DownBody::Page { req, page } => (
            req,
            Body::Page(node::Page {
                conversation: Bytes::copy_from_slice(&page.conversation.0),
                origin: Some(page.origin.into()),
                entries: page.entries.iter().map(|e| e.to_bytes()).collect(),
                gaps: page
                    .gaps
                    .iter()
                    .map(|(from, to, reason)| node::Gap { from: *from, to: *to, reason: *reason as u32 })
                    .collect(),
                last: page.last,
            }),
        ),
        DownBody::Frame(frame) => (0, Body::Frame(frame.encode_to_vec().into())),
        DownBody::Last(refusal) => {
            let frame = v1::Frame::new(0, v1::frame::Body::Error(refusal.to_wire()));
            (0, Body::LastFrame(frame.encode_to_vec().into()))
        }
    };
    node::Down { conn, req, body: Some(body) }
}

/// From an edge link, at the edge.
pub fn down_from_wire(down: node::Down) -> Result<Down, Refusal> {
    use node::down::Body;
    let receipt = |b: &[u8]| <[u8; RECEIPT_BYTES]>::try_from(b).map_err(|_| bad("a receipt has 16 bytes"));
    let body = match down.body.ok_or_else(|| bad("an empty Down"))? {
        Body::Ack(ack) => DownBody::Ack {
            req: down.req,
            ack: Ack {
                place: ack.place.ok_or_else(|| bad("place is missing"))?.try_into()?,
                first: ack.first.map(TryInto::try_into).transpose()?,
                receipt: receipt(&ack.receipt)?,
                also: ack
                    .also
                    .into_iter()
                    .map(|h| {
                        Ok(HeldAck {
                            n: h.n,
                            place: h.place.ok_or_else(|| bad("place is missing"))?.try_into()?,
                            first: h.first.map(TryInto::try_into).transpose()?,
                            receipt: receipt(&h.receipt)?,
                            cut: heads_from_wire(h.cut)?,
                        })
                    })
                    .collect::<Result<_, Refusal>>()?,
                receipt_refused: ack.receipt_refused,
                cut: heads_from_wire(ack.cut)?,
            },
        },
        Body::Push(push) => DownBody::Push(Arc::new(Push {
            conversation: convert::conversation(&push.conversation)?,
            peer: if push.peer.is_empty() { None } else { Some(convert::user(&push.peer)?) },
            entries: entries_from_wire(push.entries)?,
            heads: heads_from_wire(push.heads)?,
            prev_rev: Rev(push.prev_rev),
            rev: Rev(push.rev),
            row: push.row.map(row_from_wire).transpose()?.map(Box::new),
        })),
        Body::Page(page) => DownBody::Page {
            req: down.req,
            page: Page {
                conversation: convert::conversation(&page.conversation)?,
                origin: origin(page.origin)?,
                entries: entries_from_wire(page.entries)?,
                gaps: page
                    .gaps
                    .iter()
                    .map(|g| {
                        let reason = i32::try_from(g.reason).ok().and_then(|r| v1::gap::Reason::try_from(r).ok());
                        (g.from, g.to, reason.unwrap_or_default())
                    })
                    .collect(),
                last: page.last,
            },
        },
        Body::Frame(bytes) => DownBody::Frame(Box::new(v1::Frame::decode(bytes).map_err(bad)?)),
        Body::LastFrame(bytes) => match v1::Frame::decode(bytes).map_err(bad)?.body {
            Some(v1::frame::Body::Error(e)) => {
                let code = Code::from_u32(e.code).unwrap_or(Code::Internal);
                DownBody::Last(Refusal { code, message: e.message, retry_after_ms: e.retry_after_ms })
            }
            _ => return Err(bad("a last frame that is no error")),
        },
    };
    Ok(Down { conn: down.conn, body })
}
