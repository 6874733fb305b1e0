# syntax=docker/dockerfile:1
#
# Two images from one build:
#   docker build --target gateway -t semilayer-gateway .
#   docker build --target runner  -t semilayer-runner .
#
# Both run as uid 10001 and write nothing outside /data (the gateway, and only on the embedded store), so
# they work with a read-only root file system.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Each binary is built with its own features: the runner carries no code of the gateway.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin semilayer \
    && cp target/release/semilayer /usr/local/bin/ \
    && cargo build --release --locked --no-default-features --features runner --bin semilayer-runner \
    && cp target/release/semilayer-runner /usr/local/bin/

FROM debian:bookworm-slim AS base
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin semilayer

FROM base AS runner
COPY --from=build /usr/local/bin/semilayer-runner /usr/local/bin/
ENV PORT=8081
USER 10001
# 1 while the runner is not connected, which an orchestrator should see and not kill it for.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["semilayer-runner", "status"]
ENTRYPOINT ["semilayer-runner"]
CMD ["start"]

FROM base AS gateway
RUN install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /usr/local/bin/semilayer /usr/local/bin/
ENV SEMILAYER_DATA_DIR=/data SEMILAYER_LISTEN=0.0.0.0:8080
VOLUME /data
EXPOSE 8080
USER 10001
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["semilayer", "health"]
ENTRYPOINT ["semilayer"]
CMD ["gateway"]
