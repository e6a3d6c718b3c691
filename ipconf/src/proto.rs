//! The dispatch API as protobuf: the same values as [`crate::api`], field by field.

use tern_core::wire::v1;

use crate::api::{
    ClientView, DispatchAnswer, DispatchRequest, EdgeView, ErrorBody, ErrorView, ExplainView, HeartbeatView,
    NetworkKind, NetworkView, RttSample, TimeoutsView, Transport, UnlistedView,
};

/// A field that is no value of the API: which one, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {cause}")]
pub struct ProtoError {
    field: &'static str,
    cause: String,
}

impl ProtoError {
    fn new(field: &'static str, cause: impl ToString) -> Self {
        Self { field, cause: cause.to_string() }
    }
}

impl TryFrom<v1::DispatchRequest> for DispatchRequest {
    type Error = ProtoError;

    fn try_from(from: v1::DispatchRequest) -> Result<Self, ProtoError> {
        let network = from.network.unwrap_or_default();
        let kind = match network.kind() {
            v1::DispatchNetworkKind::Wifi => NetworkKind::Wifi,
            v1::DispatchNetworkKind::Cellular => NetworkKind::Cellular,
            v1::DispatchNetworkKind::Wired => NetworkKind::Wired,
            v1::DispatchNetworkKind::Unknown => NetworkKind::Unknown,
        };
        let as_address = match from.r#as.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|e| ProtoError::new("as", e))?),
        };
        Ok(Self {
            network: NetworkView { kind, metered: network.metered },
            rtt: from.rtt.into_iter().map(|s| RttSample { edge: s.edge, ms: s.ms }).collect(),
            exclude: from.exclude,
            user: (!from.user.is_empty()).then_some(from.user),
            explain: from.explain,
            as_address,
        })
    }
}

impl From<&DispatchRequest> for v1::DispatchRequest {
    fn from(from: &DispatchRequest) -> Self {
        let kind = match from.network.kind {
            NetworkKind::Wifi => v1::DispatchNetworkKind::Wifi,
            NetworkKind::Cellular => v1::DispatchNetworkKind::Cellular,
            NetworkKind::Wired => v1::DispatchNetworkKind::Wired,
            NetworkKind::Unknown => v1::DispatchNetworkKind::Unknown,
        };
        Self {
            network: Some(v1::DispatchNetwork { kind: kind.into(), metered: from.network.metered }),
            rtt: from.rtt.iter().map(|s| v1::DispatchRtt { edge: s.edge.clone(), ms: s.ms }).collect(),
            exclude: from.exclude.clone(),
            user: from.user.clone().unwrap_or_default(),
            explain: from.explain,
            r#as: from.as_address.map(|a| a.to_string()).unwrap_or_default(),
        }
    }
}

impl From<&DispatchAnswer> for v1::DispatchAnswer {
    fn from(from: &DispatchAnswer) -> Self {
        Self {
            ttl_s: from.ttl_s,
            client: Some(v1::DispatchClient {
                address: from.client.address.to_string(),
                country: from.client.country.clone(),
                unplaced: from.client.unplaced.clone(),
            }),
            edges: from.edges.iter().map(edge).collect(),
            heartbeat: Some(v1::DispatchHeartbeat {
                foreground_ms: from.heartbeat.foreground_ms,
                background_ms_min: from.heartbeat.background_ms_min,
                background_ms_max: from.heartbeat.background_ms_max,
            }),
            unlisted: from.unlisted.iter().map(unlisted).collect(),
        }
    }
}

fn edge(from: &EdgeView) -> v1::DispatchEdge {
    let transport = |t: &Transport| match t {
        Transport::Quic => v1::DispatchTransport::Quic.into(),
        Transport::Tcp => v1::DispatchTransport::Tcp.into(),
        Transport::Ws => v1::DispatchTransport::Ws.into(),
        Transport::Poll => v1::DispatchTransport::Poll.into(),
    };
    v1::DispatchEdge {
        id: from.id.clone(),
        region: from.region.clone(),
        addresses: from.addresses.iter().map(ToString::to_string).collect(),
        transports: from.transports.iter().map(transport).collect(),
        timeouts_ms: Some(v1::DispatchTimeouts { quic: from.timeouts_ms.quic, tcp: from.timeouts_ms.tcp }),
        rank: from.rank,
        explain: from.explain.as_ref().map(|e| v1::DispatchExplain {
            rtt_ms: e.rtt_ms,
            rtt_source: e.rtt_source.clone(),
            load: e.load,
            reason: e.reason.clone(),
        }),
        tls_name: from.tls_name.clone(),
    }
}

fn unlisted(from: &UnlistedView) -> v1::DispatchUnlisted {
    v1::DispatchUnlisted { id: from.id.clone(), region: from.region.clone(), reason: from.reason.clone() }
}

impl TryFrom<v1::DispatchAnswer> for DispatchAnswer {
    type Error = ProtoError;

    fn try_from(from: v1::DispatchAnswer) -> Result<Self, ProtoError> {
        let client = from.client.unwrap_or_default();
        let heartbeat = from.heartbeat.unwrap_or_default();
        let unlisted = from.unlisted.into_iter();
        Ok(Self {
            ttl_s: from.ttl_s,
            client: ClientView {
                address: client.address.parse().map_err(|e| ProtoError::new("client.address", e))?,
                country: client.country,
                unplaced: client.unplaced,
            },
            edges: from.edges.into_iter().map(EdgeView::try_from).collect::<Result<_, _>>()?,
            heartbeat: HeartbeatView {
                foreground_ms: heartbeat.foreground_ms,
                background_ms_min: heartbeat.background_ms_min,
                background_ms_max: heartbeat.background_ms_max,
            },
            unlisted: unlisted.map(|u| UnlistedView { id: u.id, region: u.region, reason: u.reason }).collect(),
        })
    }
}

impl TryFrom<v1::DispatchEdge> for EdgeView {
    type Error = ProtoError;

    fn try_from(from: v1::DispatchEdge) -> Result<Self, ProtoError> {
        // A transport that this version does not know is one that it can't try.
        let transports = from.transports().filter_map(|t| match t {
            v1::DispatchTransport::Quic => Some(Transport::Quic),
            v1::DispatchTransport::Tcp => Some(Transport::Tcp),
            v1::DispatchTransport::Ws => Some(Transport::Ws),
            v1::DispatchTransport::Poll => Some(Transport::Poll),
            v1::DispatchTransport::Unknown => None,
        });
        let transports = transports.collect();
        let addresses = from.addresses.iter().map(|a| a.parse().map_err(|e| ProtoError::new("addresses", e)));
        let timeouts = from.timeouts_ms.unwrap_or_default();
        Ok(Self {
            addresses: addresses.collect::<Result<_, _>>()?,
            id: from.id,
            region: from.region,
            tls_name: from.tls_name,
            transports,
            timeouts_ms: TimeoutsView { quic: timeouts.quic, tcp: timeouts.tcp },
            rank: from.rank,
            explain: from.explain.map(|e| ExplainView {
                rtt_ms: e.rtt_ms,
                rtt_source: e.rtt_source,
                load: e.load,
                reason: e.reason,
            }),
        })
    }
}

impl From<&ErrorBody> for v1::DispatchFailure {
    fn from(from: &ErrorBody) -> Self {
        Self { code: from.error.code.clone(), message: from.error.message.clone() }
    }
}

impl From<v1::DispatchFailure> for ErrorBody {
    fn from(from: v1::DispatchFailure) -> Self {
        Self { error: ErrorView { code: from.code, message: from.message } }
    }
}
