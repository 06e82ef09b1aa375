#include "pipeline/commands/commands.h"

int main(int argc, char** argv) { return roundhouse::main_command(argc, argv); }
