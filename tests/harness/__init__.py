"""What tests share: fakes, loopback servers, and a harness around the chat."""
