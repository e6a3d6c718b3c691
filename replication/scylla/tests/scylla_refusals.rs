//! What is wrong with a database or with what the configuration says of it, and what an operator is told. Each is found
//! before anything is written.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod cluster;

use cluster::{nodes, options, replication};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tern_scylla::{Cluster, Options, schema};

async fn refused(options: Options) -> String {
    match Cluster::connect(options).await {
        Ok(_) => panic!("it is accepted"),
        Err(error) => error.to_string(),
    }
}

async fn cql(session: &Session, statement: &str) {
    session.query_unpaged(statement, &[]).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_database_is_said_with_what_to_change() {
    let Some(good) = options("tern_refused") else { return };
    let session = SessionBuilder::new().known_nodes(nodes().unwrap()).build().await.unwrap();
    for keyspace in [&good.keyspace, &good.timeline_keyspace] {
        cql(&session, &format!("DROP KEYSPACE IF EXISTS {keyspace}")).await;
    }
    let said = refused(good.clone()).await;
    assert!(said.contains("no keyspace \"tern_refused_region\"; `tern store init` makes it"), "{said}");
    schema::init(&good, &replication()).await.unwrap();
    assert!(Cluster::connect(good.clone()).await.is_ok());

    let with = |change: &dyn Fn(&mut Options)| {
        let mut options = good.clone();
        change(&mut options);
        options
    };
    let said = refused(with(&|o| o.timeline_keyspace = "tern_refused_elsewhere".into())).await;
    assert!(said.contains("no keyspace \"tern_refused_elsewhere\""), "{said}");
    let said = refused(with(&|o| o.datacenter = "dc9".into())).await;
    assert!(
        said.contains("no datacenter \"dc9\"; its datacenters are dc1") && said.contains("store.datacenter"),
        "{said}"
    );
    let said = refused(with(&|o| o.nodes = vec!["127.0.0.1:1".into()])).await;
    assert!(said.contains("127.0.0.1:1") && said.contains("is store.nodes right?"), "{said}");
    let said = refused(with(&|o| o.keyspace.clone_from(&o.timeline_keyspace.clone()))).await;
    assert!(said.contains("can't be the region's keyspace and that of the entries"), "{said}");
    if replication().len() > 1 {
        // The region's own keyspace is in its own datacenter only.
        let said = refused(with(&|o| o.datacenter = "dc2".into())).await;
        assert!(said.contains("has no replicas in datacenter \"dc2\" (dc1: 1); alter its replication"), "{said}");
    }

    let version = |keyspace: &str, version: i32| {
        format!("INSERT INTO {keyspace}.tern_schema (what, version) VALUES ('schema', {version})")
    };
    for (keyspace, known) in [(&good.keyspace, schema::VERSIONS.0), (&good.timeline_keyspace, schema::VERSIONS.1)] {
        cql(&session, &version(keyspace, known + 1)).await;
        let said = refused(good.clone()).await;
        assert!(said.contains(&format!("\"{keyspace}\" has schema version {}", known + 1)), "{said}");
        assert!(said.contains("run the newer version"), "{said}");
        let said = schema::migrate(&good).await.unwrap_err().to_string();
        assert!(said.contains("run the newer version"), "{said}");
        cql(&session, &version(keyspace, known - 1)).await;
        let said = refused(good.clone()).await;
        assert!(said.contains("run `tern store migrate`"), "{said}");
        cql(&session, &version(keyspace, known)).await;
    }
    // A timeline of the first version.
    for table in ["archived", "erased"] {
        cql(&session, &format!("DROP TABLE {}.{table}", good.timeline_keyspace)).await;
    }
    cql(&session, &version(&good.timeline_keyspace, 1)).await;
    let done = schema::migrate(&good).await.unwrap().done;
    assert_eq!(done, [format!("keyspace {} has schema version 2 now", good.timeline_keyspace)]);
    assert!(Cluster::connect(good.clone()).await.is_ok());
    cql(&session, &format!("DROP TABLE {}.share", good.keyspace)).await;
    let said = refused(good.clone()).await;
    assert!(said.contains("has no table \"share\"") && said.contains("`tern store init`"), "{said}");
    cql(&session, &format!("DROP TABLE {}.tern_schema", good.timeline_keyspace)).await;
    cql(&session, &format!("DROP TABLE {}.tern_schema", good.keyspace)).await;
    let said = refused(good.clone()).await;
    assert!(said.contains("has no table \"tern_schema\": it is not tern's"), "{said}");
    schema::init(&good, &replication()).await.unwrap();
    assert!(Cluster::connect(good.clone()).await.is_ok(), "what was missing is made");
    for keyspace in [&good.keyspace, &good.timeline_keyspace] {
        cql(&session, &format!("DROP KEYSPACE {keyspace}")).await;
    }
}
