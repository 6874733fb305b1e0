//! Every frame, as it stands on the wire, read and written back.

use super::*;

const A: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// Frames a runner sends: each must parse and come out again as the same JSON.
#[test]
fn runner_frames_round_trip() {
    for golden in [
        r#"{"type":"hello","version":1,"runnerId":"primary","capabilities":["@semilayer/bridge-postgres"],"runtimeVersion":"1.2.3"}"#,
        r#"{"type":"hello","version":2,"runnerId":"A","capabilities":[],"instanceId":"A","hostname":"h","maxConcurrentJobs":8,"labels":["eu"],"compression":["zstd"]}"#,
        r#"{"type":"heartbeat"}"#,
        r#"{"type":"heartbeat","stats":{"activeJobs":2,"memoryMb":12.5}}"#,
        r#"{"type":"chunk","id":"A","rows":[{"a":1},{"a":2}]}"#,
        r#"{"type":"chunk","id":"A","rows":[],"total":7,"approximate":true}"#,
        r#"{"type":"chunk","id":"A","rows":[],"agg":[{"count":1}]}"#,
        r#"{"type":"done","id":"A"}"#,
        r#"{"type":"done","id":"A","meta":{"count":2,"durationMs":1.5,"total":9,"approximate":false,"last":[1,null],"nextCursor":"9","bytes":10}}"#,
        r#"{"type":"error","id":"A","code":"SOURCE_QUERY_FAILED","message":"no such table"}"#,
        r#"{"type":"accepted","id":"A"}"#,
        r#"{"type":"refused","id":"A","reason":"busy"}"#,
        r#"{"type":"draining"}"#,
    ] {
        let golden = golden.replace("\"A\"", &format!("\"{A}\""));
        let frame = RunnerFrame::parse(&golden).unwrap_or_else(|e| panic!("{golden}: {e}"));
        assert_eq!(same(&frame.to_text()), same(&golden));
    }
}

/// Frames a gateway sends: each must parse and come out again as the same JSON.
#[test]
fn gateway_frames_round_trip() {
    let source = r#"{"id":"A","name":"db","bridge":"@semilayer/bridge-postgres","credentialsLocation":"runner-local"}"#;
    for golden in [
        r#"{"type":"hello-ack","serverVersion":1,"assignedSources":[SOURCE]}"#,
        r#"{"type":"hello-ack","serverVersion":2,"assignedSources":[],"sessionId":"A","gatewayId":"A","heartbeatMs":10000,"lostAfterMs":12000,"compression":"zstd","limits":{"maxFrameBytes":1048576,"windowBytes":1048576}}"#,
        r#"{"type":"hello-ack","serverVersion":2,"assignedSources":[],"limits":{"maxFrameBytes":1048576,"windowBytes":1048576,"maxRowBytes":16777216}}"#,
        r#"{"type":"assignments-changed","assignedSources":[SOURCE,SOURCE]}"#,
        r#"{"type":"job","id":"A","params":{"source":SOURCE,"job":{"kind":"query","target":"t","options":{"limit":1}}},"deadlineMs":30000}"#,
        r#"{"type":"job","id":"A","params":{"source":SOURCE,"job":{"kind":"test","options":{}}},"deadlineMs":1,"jobId":"A","attempt":2,"encoding":"ndjson","window":1048576,"fields":[["col","out"]],"keys":["id"],"traceparent":"00-x"}"#,
        r#"{"type":"cancel","id":"A"}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"credit","id":"A","bytes":524288}"#,
        r#"{"type":"drain","reason":"restart","deadlineMs":30000}"#,
    ] {
        let golden = golden
            .replace("SOURCE", source)
            .replace("\"A\"", &format!("\"{A}\""));
        let frame = GatewayFrame::parse(&golden).unwrap_or_else(|e| panic!("{golden}: {e}"));
        assert_eq!(same(&frame.to_text()), same(&golden));
    }
}

#[test]
fn unknown_fields_are_ignored_and_unknown_types_are_not() {
    assert!(RunnerFrame::parse(r#"{"type":"heartbeat","mood":"fine"}"#).is_ok());
    assert_eq!(
        RunnerFrame::parse(r#"{"type":"ping"}"#).map(|_| ()),
        Err(ProtocolError::UnknownType("ping".to_owned())),
        "a gateway's frame is unknown from a runner"
    );
    for bad in [
        "",
        "[]",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"done"}"#,
        r#"{"type":"done","id":"x"}"#,
        "{",
    ] {
        assert!(
            matches!(RunnerFrame::parse(bad), Err(ProtocolError::BadJson(_))),
            "{bad}"
        );
    }
}

#[test]
fn a_hello_without_a_version_parses_so_that_it_can_be_refused_by_name() {
    let frame = RunnerFrame::parse(r#"{"type":"hello","runnerId":"r"}"#);
    assert!(matches!(
        frame,
        Ok(RunnerFrame::Hello(Hello { version: None, .. }))
    ));
}

#[test]
fn debug_output_of_a_job_shows_no_credentials() {
    let source = JobSource {
        id: SourceId::new(),
        name: "db".into(),
        bridge: "postgres".into(),
        credentials_location: CredentialsLocation::Managed,
        config: Some(serde_json::json!({"password": "hunter2"})),
    };
    assert!(!format!("{source:?}").contains("hunter2"));
}

fn same(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}
