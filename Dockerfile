# The bot as a container service:  make image, or docker build -t chatglm-bot .
#
# BASE          any Debian with Python 3.11 or newer and its venv module
# BUILD_BASE    the same with a C compiler, for the native CPU kernels; without them a CPU decodes at half the speed
# TORCH_INDEX   an extra index for torch; "" is PyPI alone, whose Linux build is the CUDA one.  CPU build:
#               https://download.pytorch.org/whl/cpu
# EXTRAS        of the package: postgres, transformers
# LOCAL         false leaves out torch and all else that local models need: for engine.backend = "remote"
# REVISION      of the sources, for the label

ARG BASE=python:3.11-slim-bookworm
ARG BUILD_BASE=python:3.11-bookworm

FROM ${BUILD_BASE} AS build
ARG TORCH_INDEX=""
ARG EXTRAS="postgres,transformers"
ARG LOCAL=true
RUN python3 -m venv /opt/bot
ENV PATH=/opt/bot/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
WORKDIR /src
# Layers that change least come first: torch, then the other packages, then the bot.  A pip.conf passed by the builder
# is mounted for these lines only and is not part of any layer.
COPY constraints.txt pyproject.toml ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    version=$(grep '^torch==' constraints.txt) && \
    if [ -n "$TORCH_INDEX" ]; then set -- --extra-index-url "$TORCH_INDEX"; fi && \
    if [ "$LOCAL" = true ]; then pip install "$@" --constraint constraints.txt "$version"; fi
COPY bot/__init__.py bot/__init__.py
COPY release/requirements.py release/requirements.py
COPY README.md LICENSE ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    mkdir migrations docs && touch config.toml docs/slack-manifest.yaml && \
    if [ "$LOCAL" = true ]; then \
        pip install --constraint constraints.txt ".[$EXTRAS]" && pip uninstall --yes chatglm-bot; \
    else \
        python3 -m release.requirements "$EXTRAS" >/tmp/requirements && \
        pip install --constraint constraints.txt --requirement /tmp/requirements; \
    fi
COPY . .
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --constraint constraints.txt --no-deps . && \
    pip uninstall --yes pip && \
    if [ "$LOCAL" = true ] && command -v cc; then python3 -P -m bot.engine.kernels.native.build; fi && \
    find /opt/bot -depth \( -name tests -path '*/torch/*' -o -name test -path '*/torch/*' \) -type d -exec rm -r {} + && \
    rm -rf /opt/bot/lib/python3*/site-packages/torch/include && \
    install -d -o 10001 -g 10001 /data


FROM ${BASE}
ARG REVISION=""
LABEL org.opencontainers.image.title="chatglm-bot" \
      org.opencontainers.image.description="A self-hosted chat bot for Discord, Telegram and Slack that serves one ChatGLM-6B" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/bot /opt/bot
COPY --from=build --chown=10001:10001 /data /data
COPY config.toml /etc/bot/config.toml
# /data keeps the database and downloaded models beyond the container; /models has the operator's own.
ENV PATH=/opt/bot/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    HF_HOME=/data/hub \
    BOT_CONFIG=/etc/bot/config.toml \
    BOT_STORAGE__URL=sqlite+aiosqlite:////data/bot.db \
    BOT_OPERATIONS__ENABLED=true
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 9464
# A large model takes minutes to load; until then the bot is live but not ready.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 CMD ["bot", "health"]
ENTRYPOINT ["bot"]
CMD ["run"]
