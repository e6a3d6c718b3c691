//! The client's own limits, each with the reason for its value.

use std::time::Duration;

/// Sends of one conversation on the way at once: covers 20 sends a second over a round trip of 3 s.
pub const WINDOW_PER_CONVERSATION: usize = 64;
/// Sends on the way at once in all; the server's own limit may be lower.
pub const WINDOW: usize = 256;
/// Requests kept free of sends, so that pulls and pings are never locked out by a full window.
pub const WINDOW_RESERVE: usize = 16;
/// Bytes of bodies on the way at once: bounds what waits for a slow radio.
pub const WINDOW_BYTES: usize = 1024 * 1024;
/// Re-offered messages on the way at once: after a region is lost, they must not crowd out new ones.
pub const OFFERS_IN_FLIGHT: usize = 16;
/// A message is offered to the same connection again after this time at the earliest.
pub const OFFER_AGAIN: Duration = Duration::from_secs(10);
/// Un-acked messages that the outbox takes; more are refused to the application.
pub const OUTBOX_MESSAGES: usize = 10_000;
/// Bytes of un-acked bodies, likewise.
pub const OUTBOX_BYTES: usize = 64 * 1024 * 1024;
/// Entries pulled below the head when a conversation is seen for the first time: two screens.
pub const FIRST_SIGHT: u64 = 50;
/// Entries below the head of each log that are pulled where data is to be saved: one screen, and more than a notification
/// shows.
pub const SAVED_ENTRIES: u64 = 20;
/// So many times longer a client that saves data waits before it tries to get back to a better transport.
pub const SAVED_CLIMB: u32 = 4;
/// Pulls of entries on the way at once: fills a long pipe, leaves room for what is more urgent.
pub const PULLS_IN_FLIGHT: usize = 4;
/// First pause after entries were not to be had; it doubles up to [`PULL_PAUSE_MAX`].
pub const PULL_PAUSE: Duration = Duration::from_secs(1);
/// See [`PULL_PAUSE`].
pub const PULL_PAUSE_MAX: Duration = Duration::from_secs(60);
/// First pause of a conversation whose send was refused with advice to try again; it doubles up to [`SEND_PAUSE_MAX`].
pub const SEND_PAUSE: Duration = Duration::from_millis(100);
/// See [`SEND_PAUSE`].
pub const SEND_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a push's acknowledgement may wait for others to join it.
pub const PUSH_ACK_DELAY: Duration = Duration::from_millis(100);
/// A Pong that is ahead of the cursor may only be ahead of a push on another lane: wait before pulling.
pub const BEHIND_GRACE: Duration = Duration::from_millis(200);
/// While something is unstable its state is asked for this often: a lost hint costs no more.
pub const UNSTABLE_ASK: Duration = Duration::from_secs(5);
/// Newly acked conversations are listed after this delay, several in one frame.
pub const UNSTABLE_ASK_FIRST: Duration = Duration::from_millis(50);
/// Silence after which probes start while an answer is awaited, and their distance at first.
pub const PROBE: Duration = Duration::from_millis(250);
/// Silence after which probes slow down to [`PROBE_SLOW`].
pub const PROBE_FAST_FOR: Duration = Duration::from_secs(10);
/// See [`PROBE_FAST_FOR`].
pub const PROBE_SLOW: Duration = Duration::from_secs(1);
/// An awaited answer and this silence, or 4 round trips and half a second: the connection counts as dead.
pub const SILENCE_MIN: Duration = Duration::from_secs(1);
/// Something was written and not a single packet came for so long, or for three round trips and [`QUIET_SLACK`]: another
/// edge is asked beside this one.
pub const QUIET_AFTER: Duration = Duration::from_millis(125);
/// So long after it was found to be quiet it is looked at again.
pub const QUIET_AGAIN: Duration = Duration::from_millis(25);
/// A connection that a doubt has brought about is doubted after so many times as long, one that was doubted in vain up
/// to twice as many.
pub const QUIET_PATIENCE: u32 = 4;
/// Likewise where nothing had come for [`QUIET_AWAKE`] before: a phone's radio wakes up within this time.
pub const QUIET_ASLEEP: Duration = Duration::from_millis(375);
/// See [`QUIET_ASLEEP`]: radios doze off after some seconds.
pub const QUIET_AWAKE: Duration = Duration::from_secs(3);
/// See [`QUIET_AFTER`]: an acknowledgement may be held back for so long.
pub const QUIET_SLACK: Duration = Duration::from_millis(25);
/// What is asked elsewhere in doubt begins within this time: then a silent connection counts as dead.
pub const QUIET_FOR: Duration = Duration::from_millis(750);
/// On longer ways nothing is doubted: what is asked elsewhere would stand in the way of the answer.
pub const QUIET_ROUND_TRIP: Duration = Duration::from_millis(200);
/// A silent connection is kept beside its successor's attempts for this long: it may only have been slow, and after a
/// ride in an elevator it is the one that needs no handshake.
pub const SUSPECT_KEEP: Duration = Duration::from_secs(120);
/// While nothing was heard for this long, or for two round trips, little more is given to a connection: it would fill its
/// window, and there would be no room left for the probes that find the end of an outage.
pub const HOLD_AFTER: Duration = Duration::from_millis(250);
/// So much is given to it all the same, for the case that only the way back is dark.
pub const BLIND_BYTES: usize = 4 * 1024;
/// What a Send takes beside its body, generously.
pub const SEND_HEAD: usize = 128;
/// A request without an answer on a connection that lives: the server is stuck, go elsewhere.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The edge can't reach the user's owner for this long: go elsewhere.
pub const REV_UNKNOWN_MAX: Duration = Duration::from_secs(5);
/// Likewise where the edge says that the owner is being started again: its word is followed up to this.
pub const STAY_MAX: Duration = Duration::from_secs(60);
/// Time from the start of a QUIC attempt to its Welcome, where dispatch says nothing.
pub const QUIC_TIMEOUT: Duration = Duration::from_secs(1);
/// Likewise over TCP+TLS, which takes two round trips more.
pub const TCP_TIMEOUT: Duration = Duration::from_secs(2);
/// Time-outs double with each failed round, this often at most: 2G needs eight seconds, and twice that for dispatch.
pub const TIMEOUT_DOUBLINGS: u32 = 3;
/// Round trip that is assumed where none is known, doubled with each round that failed as time-outs are.
pub const ROUND_RTT: Duration = Duration::from_millis(150);
/// The second candidate of a round starts so long after the first: one and a half round trips, within these bounds.
pub const SECOND_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(250));
/// TCP+TLS starts this long after QUIC on the first candidate of a round.
pub const TCP_AFTER: Duration = Duration::from_millis(300);
/// Likewise where QUIC gets through and there is one edge only: two more attempts by QUIC are better before that.
pub const KNOWN_TCP_AFTER: Duration = Duration::from_millis(600);
/// Of two attempts by one transport at one address the older one is kept for so long at least.
pub const TWIN_FOR: Duration = Duration::from_millis(500);
/// Likewise where a connection by QUIC has just fallen silent: UDP may be lost from now on, or only that edge.
pub const SILENT_TCP_AFTER: Duration = Duration::from_millis(20);
/// Where QUIC has lost lately, it is what starts so long after TCP+TLS.
pub const QUIC_AFTER: Duration = Duration::from_millis(300);
/// The third candidate of a round starts this long after the first.
pub const THIRD_AFTER: Duration = Duration::from_secs(1);
/// From then on another attempt starts after each of these, as soon as there is room for one.
pub const NEXT_AFTER: Duration = Duration::from_millis(250);
/// QUIC that was tried for so long before another transport was welcomed has lost.
pub const QUIC_LOST_AFTER: Duration = Duration::from_millis(300);
/// Pause before QUIC is tried again beside another transport in use; doubles with each loss up to [`QUIC_AGAIN_MAX`].
pub const QUIC_AGAIN: Duration = Duration::from_secs(30);
/// See [`QUIC_AGAIN`]; after so long nothing is held against it either.
pub const QUIC_AGAIN_MAX: Duration = Duration::from_secs(20 * 60);
/// Lines of what happened to connections that diagnostics show.
pub const JOURNAL_LINES: usize = 100;
/// Networks that are remembered; the ones used last are kept.
pub const NETWORKS: usize = 32;
/// Bytes of a network's name that count.
pub const NETWORK_ID_BYTES: usize = 64;
/// Where QUIC or TCP+TLS was welcomed within this time, a WebSocket and polls are not tried until so many rounds have failed
/// as [`WEB_ROUNDS`] says: after an outage they would only win by chance.
pub const PLAIN_HOLDS: Duration = Duration::from_secs(3600);
/// See [`PLAIN_HOLDS`].
pub const WEB_ROUNDS: u32 = 6;
/// A WebSocket to the best candidate is begun this long after the round, at the earliest, and after everything else.
pub const WEBSOCKET_AFTER: Duration = Duration::from_secs(2);
/// Likewise polls.
pub const POLL_AFTER: Duration = Duration::from_millis(3500);
/// A WebSocket that is ended by others within this time was cut by somebody on the way, who may want to see requests and
/// answers.
pub const SOCKET_YOUNG: Duration = Duration::from_secs(60);
/// So many of them in a row, and polls are tried first: they outlive the streams that carry them.
pub const SOCKETS_CUT: u32 = 2;
/// Connection attempts at once.
pub const ATTEMPTS: usize = 3;
/// Candidates of one round.
pub const CANDIDATES: usize = 24;
/// Edges of a list that are tried before a built-in one that it does not name.
pub const LISTED_FIRST: usize = 3;
/// Back-off between rounds: full jitter below this, doubling with each round.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// See [`BACKOFF_MIN`].
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A bound instead of [`BACKOFF_MAX`] while nobody answers at all for no longer than [`OUTAGE`] in the foreground: there is
/// no server to spare, and a user waits.
pub const OUTAGE_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// See [`OUTAGE_BACKOFF_MAX`].
pub const OUTAGE: Duration = Duration::from_secs(120);
/// An edge's word over how long its clients are to come back is followed up to this: nobody is to wait for longer.
pub const SPREAD_MAX: Duration = Duration::from_secs(10);
/// Where nothing listens at any edge any more, an attempt by QUIC that is under way has so long to show the contrary: three
/// round trips of a usual network. A gateway may refuse TCP by itself.
pub const GONE_AFTER: Duration = Duration::from_millis(500);
/// A connection that lived this long ends the back-off.
pub const SETTLED: Duration = Duration::from_secs(5);
/// An edge or region that failed goes to the end of the list for this long.
pub const DEMOTED_FOR: Duration = Duration::from_secs(60);
/// A dispatch request without an answer for this long lets the next address be asked. Doubles each time that all have
/// failed, as time-outs of attempts do.
pub const DISPATCH_TIMEOUT: Duration = Duration::from_secs(2);
/// The next dispatch address is asked beside one that has not answered for so long.
pub const DISPATCH_NEXT: Duration = Duration::from_millis(400);
/// So many attempts of a round must have failed before dispatch is asked for another list in the middle of it.
pub const ASK_AFTER: u32 = 3;
/// And so much time must have passed since it was asked: a list is not better after a moment.
pub const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Dispatch addresses that are asked at once.
pub const DISPATCHES: usize = 3;
/// A start without a valid list waits this long for dispatch before it tries what it has.
pub const DISPATCH_FIRST: Duration = Duration::from_secs(1);
/// Edges named as failed in a dispatch request.
pub const EXCLUDES: usize = 16;
/// How long a request for a token may take.
pub const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Heartbeat where the server names none.
pub const HEARTBEAT: Duration = Duration::from_secs(25);
/// Shortest and longest heartbeat that a server's word is followed for.
pub const HEARTBEAT_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A beat comes after so many thousandths of its interval; the first one of a connection after at least [`FIRST_BEAT_MIN`].
pub const BEAT_JITTER: std::ops::RangeInclusive<u32> = 900..=1000;
/// See [`BEAT_JITTER`].
pub const FIRST_BEAT_MIN: u32 = 100;
/// No gateway that was learned makes a beat more frequent than this.
pub const BEAT_FLOOR: Duration = Duration::from_secs(10);
/// Growth of a background beat after [`BEATS_STABLE`] of them.
pub const BEAT_STEP: Duration = Duration::from_secs(60);
/// Beats that must be answered before a longer silence is tried.
pub const BEATS_STABLE: u32 = 3;
/// After a silence that was too long nothing longer than what was survived is tried for so long: a phone that is deaf for
/// minutes once a day may miss one message, and no gateway is worth more.
pub const LONGER_AFTER: Duration = Duration::from_secs(24 * 3600);
/// The search ends when what was survived and what was too long are so close.
pub const BEAT_GAP: Duration = Duration::from_secs(20);
/// A beat stays below what was too long by an eighth of it, and by this at most.
pub const BEAT_MARGIN_MAX: Duration = Duration::from_secs(20);
/// What was too long for a gateway is believed for so long.
pub const LEARNED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// A connection that is made within this time after a beat stayed without answer shows that the network was there.
pub const BLAME_WITHIN: Duration = Duration::from_secs(10);
/// What arrives so long after it was written, just after a beat, was held back by a closed gateway.
pub const LATE_PUSH: Duration = Duration::from_secs(5);
/// First pause between two rounds of giving a region the membership entries that it lacks; it doubles up to
/// [`GIVE_PAUSE_MAX`]. A region that takes them and refuses still waits for something else.
pub const GIVE_PAUSE: Duration = Duration::from_secs(2);
/// See [`GIVE_PAUSE`].
pub const GIVE_PAUSE_MAX: Duration = Duration::from_secs(120);
/// Read marks on the way at once: after a flight all conversations may have one.
pub const MARKS_IN_FLIGHT: usize = 8;
/// First pause after a mark was not taken; it doubles up to [`MARK_PAUSE_MAX`].
pub const MARK_PAUSE: Duration = Duration::from_secs(1);
/// See [`MARK_PAUSE`].
pub const MARK_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a word that somebody is typing holds.
pub const TYPING_FOR: Duration = Duration::from_secs(8);
/// While he goes on it is said again this often: one of two may get lost.
pub const TYPING_AGAIN: Duration = Duration::from_secs(3);
/// A signal may be on its way so long behind a message sent after it: two regions merge what comes within 50 ms.
pub const TYPING_SETTLES: Duration = Duration::from_millis(500);
/// In the background nobody waits for what is sent: what is written within so long goes out together, in one packet and
/// one wake-up of the radio.
pub const GATHER: Duration = Duration::from_millis(20);
/// Longest time that another client's word is believed for.
pub const TYPING_MAX: Duration = Duration::from_secs(30);
/// Users that are known to be typing, in all conversations: more than anybody can look at.
pub const TYPISTS: usize = 256;
/// Signals a second, and at once: half of what an edge takes from a connection.
pub const SIGNALS_PER_SECOND: u32 = 5;
/// See [`SIGNALS_PER_SECOND`].
pub const SIGNALS_BURST: u32 = 10;
/// Whose presence is watched is said again this often: what was told of it may have been dropped under load.
pub const WATCH_AGAIN: Duration = Duration::from_secs(300);
/// Folds of a server on the way at once: they matter less than entries.
pub const CELLS_IN_FLIGHT: usize = 2;
/// Pause after a fold was not to be had.
pub const CELLS_PAUSE: Duration = Duration::from_secs(10);
/// Facts kept per conversation before superseded cells are forgotten: twice the cells that are folded.
pub const FACTS: usize = 2 * crate::limits::CELLS;
/// A token is renewed this long before its end, or a quarter of its life if that is shorter; half of it is random.
pub const TOKEN_MARGIN: Duration = Duration::from_secs(600);
/// First pause after a token was not renewed; it doubles up to [`TOKEN_PAUSE_MAX`].
pub const TOKEN_PAUSE: Duration = Duration::from_secs(5);
/// See [`TOKEN_PAUSE`].
pub const TOKEN_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Tokens that may be refused one after the other before the application is asked less often, by [`TOKEN_PAUSE`]: the
/// first may have expired, and an edge or two may have a wrong clock or lack a key.
pub const TOKENS_AT_ONCE: u32 = 3;
/// Bytes of what a server or the application says that are kept and passed on: a long sentence.
pub const WORDS_BYTES: usize = 240;
/// Pings whose answers are awaited; older ones are forgotten.
pub const PINGS: usize = 64;
/// Questions which logs a conversation has, on the way at once: they matter less than entries.
pub const ERAS_IN_FLIGHT: usize = 2;
/// Pause between two such questions about one conversation.
pub const ERAS_PAUSE: Duration = Duration::from_secs(10);
/// More is held of a log than the region tells of: it has so long to hear of it before it is asked.
pub const DOUBT_AFTER: Duration = Duration::from_secs(5);
/// And is asked again after so long.
pub const DOUBT_AGAIN: Duration = Duration::from_secs(600);
