"""The service proxy: makes every service address reach a right pod."""
