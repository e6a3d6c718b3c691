//! In which form a request and its answer travel: JSON, or protobuf for those who ask for it.

use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};

use crate::limits::MEDIA_RANGES;

/// Names of protobuf in headers. The first is the one that answers have; the others are in use too.
const PROTOBUF: [&str; 3] = ["application/x-protobuf", "application/protobuf", "application/vnd.google.protobuf"];
const JSON: [&str; 1] = ["application/json"];

/// A form of request and answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// The default.
    #[default]
    Json,
    /// `tern.v1.Dispatch*`.
    Protobuf,
}

/// How well a media range names a form: not at all, by `*/*`, by `application/*`, or by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    Any,
    Application,
    Named,
}

impl Encoding {
    /// As it stands in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Protobuf => "protobuf",
        }
    }

    /// What answers in this form say of themselves.
    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(self.names()[0])
    }

    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Json => &JSON,
            Self::Protobuf => &PROTOBUF,
        }
    }

    /// The form of the answer that `Accept` prefers (RFC 9110, 12.5.1); JSON where it says nothing. Of equals
    /// the one that is named wins over one that is only covered. None: it takes neither.
    pub(crate) fn accepted(headers: &HeaderMap) -> Option<Self> {
        if headers.get_all(ACCEPT).iter().all(HeaderValue::is_empty) {
            return Some(Self::Json);
        }
        let [json, protobuf] = [Self::Json, Self::Protobuf].map(|e| e.quality(headers));
        match (json, protobuf) {
            (None, None) => None,
            (json, protobuf) if protobuf > json => Some(Self::Protobuf),
            _ => Some(Self::Json),
        }
    }

    /// The quality, in thousandths, that the closest range gives to this form, and how close that is; None if
    /// it is refused.
    fn quality(self, headers: &HeaderMap) -> Option<(u32, Match)> {
        let values = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
        let ranges = values.flat_map(|v| v.split(',')).take(MEDIA_RANGES);
        let matching = ranges.filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let how = self.matched(parts.next()?)?;
            let q = parts.find_map(|p| p.split_once('=').filter(|(k, _)| k.trim().eq_ignore_ascii_case("q")));
            Some((how, q.map_or(1_000, |(_, value)| thousandths(value.trim()))))
        });
        let (how, quality) = matching.max_by_key(|(how, quality)| (*how, *quality))?;
        (quality > 0).then_some((quality, how))
    }

    fn matched(self, range: &str) -> Option<Match> {
        match range {
            "*/*" => Some(Match::Any),
            _ if range.eq_ignore_ascii_case("application/*") => Some(Match::Application),
            _ => self.is_named(range).then_some(Match::Named),
        }
    }

    fn is_named(self, media_type: &str) -> bool {
        self.names().iter().any(|n| media_type.eq_ignore_ascii_case(n))
    }

    /// The form of a request's body: JSON where it does not say. The error is what it says.
    pub(crate) fn of_body(headers: &HeaderMap) -> Result<Self, String> {
        let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Self::Json) };
        let text = String::from_utf8_lossy(value.as_bytes());
        let media_type = text.split(';').next().unwrap_or_default().trim();
        let known = [Self::Json, Self::Protobuf].into_iter().find(|e| e.is_named(media_type));
        known.ok_or_else(|| media_type.chars().take(100).collect())
    }
}

/// A quality as RFC 9110 writes it: "1", "0.5", at most three digits. What is none of that refuses.
fn thousandths(text: &str) -> u32 {
    match text.parse::<f32>() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1,000")]
        Ok(q) if (0.0..=1.0).contains(&q) => (q * 1_000.0).round() as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_take_the_form_that_is_preferred() {
        let (json, protobuf) = (Some(Encoding::Json), Some(Encoding::Protobuf));
        let cases = [
            (None, json),
            (Some("application/json"), json),
            (Some("*/*"), json),
            (Some("application/*"), json),
            (Some("application/x-protobuf"), protobuf),
            (Some("Application/X-Protobuf; proto=tern.v1.DispatchAnswer"), protobuf),
            (Some("application/protobuf"), protobuf),
            (Some("application/vnd.google.protobuf"), protobuf),
            (Some("application/x-protobuf, */*"), protobuf),
            (Some("*/*, application/x-protobuf;q=0.9"), json),
            (Some("application/json;q=0.5, application/x-protobuf"), protobuf),
            (Some("application/json, application/x-protobuf"), json),
            (Some("application/json;q=0, */*"), protobuf),
            (Some("application/json; q = 0, application/x-protobuf;q=0.001"), protobuf),
            (Some("text/html, application/xml;q=0.9"), None),
            (Some("application/json;q=0"), None),
            (Some("application/json;q=7"), None),
            (Some(""), json),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(Encoding::accepted(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn bodies_are_what_they_say() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
            Encoding::of_body(&headers)
        };
        assert_eq!(Encoding::of_body(&HeaderMap::new()), Ok(Encoding::Json));
        assert_eq!(of("application/json; charset=utf-8"), Ok(Encoding::Json));
        assert_eq!(of("APPLICATION/X-PROTOBUF"), Ok(Encoding::Protobuf));
        assert_eq!(of("application/x-www-form-urlencoded"), Err("application/x-www-form-urlencoded".to_owned()));
        assert_eq!(of(&"x".repeat(1_000)).unwrap_err().len(), 100);
    }
}
