//! What `store.tier.url` names.

use std::path::PathBuf;

/// Where objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `file:///var/lib/tern-archive`: below a directory of this machine.
    Directory(PathBuf),
    /// `s3://bucket/prefix`: in a bucket, below a prefix or none.
    S3 {
        /// Its name.
        bucket: String,
        /// Words between slashes; empty: none.
        prefix: String,
    },
}

impl Location {
    /// Reads a URL. The error says what one looks like.
    pub fn parse(url: &str) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') || path.len() < 2 {
                return Err(format!("{url:?} names no directory: write file:// and an absolute path, as file:///data"));
            }
            return Ok(Self::Directory(PathBuf::from(path)));
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(format!("{url:?} is no archive: write file:///DIRECTORY or s3://BUCKET/PREFIX"));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_word = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let prefix = prefix.trim_matches('/');
        if !is_word(bucket) {
            return Err(format!(
                "{url:?} names no bucket: write s3://BUCKET/PREFIX, without a host; see store.tier.endpoint"
            ));
        }
        if !prefix.is_empty() && !prefix.split('/').all(|word| is_word(word) && word != "." && word != "..") {
            return Err(format!(
                "{url:?} has a prefix with other characters than a-z, 0-9, \"-\", \"_\", \".\" and \"/\""
            ));
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_told_what_is_wrong_with_them() {
        let s3 = |bucket: &str, prefix: &str| Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        for (url, location) in [
            ("file:///var/lib/tern", Location::Directory("/var/lib/tern".into())),
            ("s3://old-messages", s3("old-messages", "")),
            ("s3://old-messages/", s3("old-messages", "")),
            ("s3://old-messages/eu/one/", s3("old-messages", "eu/one")),
        ] {
            assert_eq!(Location::parse(url), Ok(location));
        }
        for (url, words) in [
            ("", "file:///DIRECTORY"),
            ("/var/lib/tern", "file:///DIRECTORY"),
            ("https://s3.example.com/b", "s3://BUCKET"),
            ("file://relative", "absolute"),
            ("file:///", "absolute"),
            ("s3://", "names no bucket"),
            ("s3://user:secret@host", "names no bucket"),
            ("s3://b/a//b", "prefix"),
            ("s3://b/../c", "prefix"),
        ] {
            let error = Location::parse(url).unwrap_err();
            assert!(error.contains(words), "{url}: {error}");
        }
    }
}
