# A machine that is client and builder at once, as the checks evaluate it.
{
  services.nix-binary-cache = {
    client = {
      enable = true;
      configurationFile = ./example-cache.json;
    };
    builder = {
      enable = true;
      configurationFile = ./example-cache.json;
      name = "nixbuilder";
      postBuildHook = true;
    };
  };

  boot.isContainer = true;
  system.stateVersion = "26.05";
}
